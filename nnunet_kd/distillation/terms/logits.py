"""Terms that compare the logits of student and teacher."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term, read_convex


class LogitsTerm(Term):
    """A term on the logits of student and teacher; its loss has ``forward(student, teacher, regions, valid)``.

    Args:
        name: As for :class:`Term`.
        loss: As for :class:`Term`.
        num_epochs: As for :class:`Term`.
        scales: ``"full"`` for the finest scale alone, or ``"all"`` for every scale of deep supervision at which both
            networks are trained. Each scale has half the weight of the next finer one, as in nnU-Net. The coarsest is
            left out, because nnU-Net gives it the weight 0 and so never trains it.
        convex: Whether nnU-Net's own loss gets the weight ``1 - weight``.
        common: ``weight`` and ``ramp``.
    """

    reads_logits: ClassVar[bool] = True
    recorded: ClassVar[tuple[str, ...]] = ("convex", "all_scales")

    def __init__(
        self, name: str, loss: Any, num_epochs: int, *, scales: str = "full", convex: bool = False, **common: Any
    ) -> None:
        super().__init__(name, loss, num_epochs, **common)
        if scales not in ("all", "full"):
            raise ValueError(f"scales must be 'all' or 'full', got {scales!r}")
        self.all_scales = scales == "all"
        self.convex = read_convex(convex, self.weight)

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the weighted mean over the scales."""
        taught = {logits.shape[2:]: logits for logits in step.teacher_logits}
        count = len(step.logits)
        scales = range(max(count - 1, 1)) if self.all_scales else range(1)
        total: Tensor | None = None
        weights = 0.0
        for scale in scales:
            logits = step.logits[scale]
            if logits.shape[2:] not in taught:
                continue
            valid = step.labels.valid(step.targets[scale])
            value = self.loss(logits, taught[logits.shape[2:]], regions=step.labels.regions, valid=valid)
            weight = 0.5**scale
            total = weight * value if total is None else total + weight * value
            weights += weight
        assert total is not None, "both networks have the full resolution"
        return total / weights
