"""Terms on stored soft labels, which need no teacher during training."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term, read_convex


class SoftLabelTerm(Term):
    """A term that compares the student's logits with stored ones (SAM-DRA-UNet, eq. 17).

    The loss has ``forward(student, teacher, regions, valid)``, as for :class:`LogitsTerm`. With a weight of 0 the term
    is not computed and no soft labels are read, as in the row "hard targets only" of table 3.

    Args:
        name: As for :class:`Term`.
        loss: As for :class:`Term`.
        num_epochs: As for :class:`Term`.
        convex: Whether nnU-Net's own loss gets the weight ``1 - weight``.
        store: The name of the soft labels (:mod:`nnunet_kd.teachers.soft_labels`); ``None`` if there is only one store.
        soft_labels: Another name for ``store``.
        hard_loss: The loss on the labels: ``"dice_ce"`` for nnU-Net's own, or ``"ce"`` for cross-entropy alone, as in
            eq. 16.
        common: ``weight`` and ``ramp``.
    """

    allows_zero_weight: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    recorded: ClassVar[tuple[str, ...]] = ("convex", "store", "hard_loss")

    def __init__(
        self,
        name: str,
        loss: Any,
        num_epochs: int,
        *,
        convex: bool = True,
        store: str | None = None,
        soft_labels: str | None = None,
        hard_loss: str = "dice_ce",
        **common: Any,
    ) -> None:
        super().__init__(name, loss, num_epochs, **common)
        for key, given in (("store", store), ("soft_labels", soft_labels)):
            if given is not None and not isinstance(given, str):
                raise ValueError(f"{key} must be null or a name, got {given!r}")
        if store is not None and soft_labels is not None:
            raise ValueError("store and soft_labels are the same setting: give one of them")
        if hard_loss not in ("dice_ce", "ce"):
            raise ValueError(f"hard_loss must be 'dice_ce' or 'ce', got {hard_loss!r}")
        self.convex = read_convex(convex, self.weight)
        self.store = store if soft_labels is None else soft_labels
        self.hard_loss = hard_loss

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the loss at full resolution over the voxels that have soft labels and are not ignored.

        In cases without a reference all voxels that have soft labels count.
        """
        assert step.soft_labels is not None
        soft, valid = step.soft_labels
        annotated = step.labels.valid(step.targets[0])
        if annotated is not None:
            if step.unlabelled is not None:
                annotated = annotated | step.unlabelled.view(-1, *[1] * (annotated.ndim - 1))
            valid = valid & annotated
        value: Tensor = self.loss(step.logits[0], soft, regions=step.labels.regions, valid=valid)
        return value
