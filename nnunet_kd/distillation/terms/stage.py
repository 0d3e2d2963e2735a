"""Terms that compare encoder features of student and teacher."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term, is_frozen
from nnunet_kd.networks.stages import EncoderStages, match_stages


class StageTerm(Term):
    """A feature loss summed over the encoder stages of student and teacher on the same grid (DCD, eq. 8).

    The loss has ``forward(student, teacher, projection)`` for one pair of stages, and ``projection(student_channels,
    teacher_channels, dim)``, which builds its adapter. Attributes of the loss say what else these two get:

    ===================== ===============================================
    ``needs_classes``     ``classes`` and ``num_classes``
    ``needs_foreground``  ``foreground``
    ``needs_structures``  ``target``, ``regions``, ``valid``, ``num_classes``
    ``needs_grid``        for ``projection``: ``grid``
    ``remembers_classes`` for ``projection``: ``num_classes``
    ===================== ===============================================

    Args:
        name: As for :class:`Term`.
        loss: As for :class:`Term`.
        num_epochs: As for :class:`Term`.
        stages: The student's stages to distil, counted from 0 at the highest resolution; ``None`` for all that match a
            stage of the teacher.
        projection: ``"learned"`` to train the projections phi with the student; ``"frozen"`` to keep their random
            start, as in the code of DCD's authors, whose optimizer does not hold phi.
        common: ``weight`` and ``ramp``.
    """

    reads_encoder: ClassVar[bool] = True
    recorded: ClassVar[tuple[str, ...]] = ("convex", "stages")

    def __init__(
        self,
        name: str,
        loss: Any,
        num_epochs: int,
        *,
        stages: Sequence[int] | None = None,
        projection: str = "learned",
        **common: Any,
    ) -> None:
        super().__init__(name, loss, num_epochs, **common)
        self.stages = _read_stages(stages)
        self.frozen_projection = is_frozen(projection)

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the sum of the loss over the stages."""
        losses = self.of_stages(step, adapters)
        total: Tensor = sum(losses[1:], losses[0])
        return total

    def of_stages(self, step: TrainStep, adapters: Any) -> list[Tensor]:
        """Return the loss of every distilled stage, finest first."""
        options = _annotation(self.loss, step)
        return [
            self.loss(step.encoder[i], step.teacher_encoder[j], projection, **options)
            for (i, j), projection in zip(self.pairs(step.stages), adapters, strict=True)
        ]

    def pairs(self, matched: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Select the pairs that the term distils from all matched ones.

        Raises:
            ValueError: If the term asks for a stage that is not among them.
        """
        pairs = list(matched)
        if self.stages is None:
            return pairs
        available = [student for student, _ in pairs]
        for stage in self.stages:
            if stage not in available:
                raise ValueError(f"{self.name}: stage {stage} cannot be distilled, only {available}")
        return [pair for pair in pairs if pair[0] in self.stages]

    def taught_stages(self, step: TrainStep) -> Collection[int]:
        """Return the teacher's stages that are compared with the student's."""
        return {taught for _, taught in self.pairs(step.stages)}

    def check_pairs(self, matched: Iterable[tuple[int, int]]) -> None:
        """Check that the matched pairs include every stage the term asks for."""
        self.pairs(matched)

    def adapters(
        self,
        student: EncoderStages | None,
        teacher: EncoderStages | None,
        decoder: int = 0,
        num_classes: int | None = None,
    ) -> nn.Module:
        """Build one projection per pair of stages."""
        assert student is not None and teacher is not None
        grids = student.grids if getattr(self.loss, "needs_grid", False) else None
        options = {"num_classes": num_classes} if getattr(self.loss, "remembers_classes", False) else {}
        adapters = nn.ModuleList(
            self.loss.projection(
                student.widths[i],
                teacher.widths[j],
                student.dim,
                **options,
                **({} if grids is None else {"grid": grids[i]}),
            )
            for i, j in self.pairs(match_stages(student, teacher))
        )
        if self.frozen_projection:
            self.freeze(adapters)
        return adapters

    def freeze(self, adapters: nn.ModuleList) -> None:
        """Exclude the projections from training: without gradients, no optimizer changes or decays them."""
        adapters.requires_grad_(False)

    def __str__(self) -> str:
        return f"{super().__str__()}{', projection frozen' if self.frozen_projection else ''}"


def _annotation(loss: Any, step: TrainStep) -> dict[str, Any]:
    """Return what a loss asks for of the annotation at full resolution."""
    labels, target = step.labels, step.targets[0]
    if getattr(loss, "needs_classes", False):
        return {"classes": labels.classes(target), "num_classes": labels.num_classes}
    if getattr(loss, "needs_foreground", False):
        return {"foreground": labels.foreground(target)}
    if getattr(loss, "needs_structures", False):
        return {
            "target": labels.structures(target),
            "regions": labels.regions,
            "valid": labels.valid(target),
            "num_classes": labels.num_classes,
        }
    return {}


def _read_stages(stages: Any) -> tuple[int, ...] | None:
    if stages is None:
        return None
    listed = isinstance(stages, list | tuple) and len(stages) > 0
    if not listed or any(isinstance(stage, bool) or not isinstance(stage, int) or stage < 0 for stage in stages):
        raise ValueError(f"stages must be null or a list of stage numbers from 0, got {stages!r}")
    return tuple(sorted(set(stages)))
