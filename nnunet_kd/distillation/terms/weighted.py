"""Terms on encoder features whose stages have different weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from nnunet_kd.distillation.ramp import read_ramp
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.stage import StageTerm
from nnunet_kd.losses.features import check_number


class WeightedStageTerm(StageTerm):
    """A :class:`StageTerm` whose loss has ``stage_weights(count, dim)``: the weights of its stages, finest first.

    Args:
        name: As for :class:`StageTerm`.
        loss: As for :class:`StageTerm`.
        num_epochs: As for :class:`StageTerm`.
        stage_weights: The weights of the distilled stages, finest first; ``None`` for the loss's own.
        deepest: Whether ``stages: None`` includes the stage of the lowest resolution.
        ramp: As for :class:`StageTerm`.
        ramp_shape: ``"linear"``, as in the code of DPRD's authors, or ``"cosine"``.
        common: ``weight``, ``stages`` and ``projection``.
    """

    recorded: ClassVar[tuple[str, ...]] = (*StageTerm.recorded, "stage_weights", "deepest")

    def __init__(
        self,
        name: str,
        loss: Any,
        num_epochs: int,
        *,
        stage_weights: Sequence[float] | None = None,
        deepest: bool = True,
        ramp: Sequence[float] | None = None,
        ramp_shape: str = "linear",
        **common: Any,
    ) -> None:
        super().__init__(name, loss, num_epochs, **common)
        self.stage_weights = _read_weights(stage_weights)
        if not isinstance(deepest, bool):
            raise ValueError(f"deepest must be true or false, got {deepest!r}")
        self.deepest = deepest
        self.ramp = read_ramp(ramp, num_epochs, ramp_shape)

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the weighted sum of the loss over the stages."""
        losses = self.of_stages(step, adapters)
        weights = self.stage_weights
        if weights is None:
            weights = self.loss.stage_weights(len(losses), step.teacher_encoder[0].ndim - 2)
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        total: Tensor = sum(weighted[1:], weighted[0])
        return total

    def pairs(self, matched: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Select the pairs that the term distils, without the deepest if it is left out.

        Raises:
            ValueError: If the term asks for a stage that is not among them, or has weights of other stages.
        """
        pairs = super().pairs(matched)
        if self.stages is None and not self.deepest and len(pairs) > 1:
            pairs = pairs[:-1]
        if self.stage_weights is not None and len(self.stage_weights) != len(pairs):
            raise ValueError(
                f"{self.name}: stage_weights has {len(self.stage_weights)} numbers, {len(pairs)} stages are distilled"
            )
        return pairs


def _read_weights(given: Any) -> tuple[float, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"stage_weights must be null or a list of numbers, got {given!r}")
    for weight in given:
        check_number("stage_weights", weight, positive=False)
    if not any(given):
        raise ValueError("stage_weights are all 0: nothing would be distilled")
    return tuple(float(weight) for weight in given)
