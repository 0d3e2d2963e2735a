"""Terms on stored soft labels, which need no teacher while the student trains."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term, read_convex


class SoftLabelTerm(Term):
    """A loss between the student's logits and stored ones (SAM-DRA-UNet, eq. 17).

    The loss has ``forward(student, teacher, regions, valid)``, as that of a :class:`LogitsTerm`. With the weight 0 the
    term is not computed and no soft labels are read: the "hard targets only" of table 3.

    Args:
        name: As for :class:`Term`.
        loss: As for :class:`Term`.
        num_epochs: As for :class:`Term`.
        convex: Give nnU-Net's own loss the weight ``1 - weight``.
        store: Name of the soft labels (:mod:`nnunet_kd.teachers.soft_labels`); ``None``: the only ones there are.
        hard_loss: What the student learns the labels themselves with: ``"dice_ce"``, nnU-Net's own, or ``"ce"`` alone,
            as in eq. 16.
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
        hard_loss: str = "dice_ce",
        **common: Any,
    ) -> None:
        super().__init__(name, loss, num_epochs, **common)
        if store is not None and not isinstance(store, str):
            raise ValueError(f"store must be null or a name, got {store!r}")
        if hard_loss not in ("dice_ce", "ce"):
            raise ValueError(f"hard_loss must be 'dice_ce' or 'ce', got {hard_loss!r}")
        self.convex = read_convex(convex, self.weight)
        self.store = store
        self.hard_loss = hard_loss

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the value at full resolution, where there are soft labels and no voxel is ignored."""
        assert step.soft_labels is not None
        soft, valid = step.soft_labels
        annotated = step.labels.valid(step.targets[0])
        if annotated is not None:
            valid = valid & annotated
        value: Tensor = self.loss(step.logits[0], soft, regions=step.labels.regions, valid=valid)
        return value
