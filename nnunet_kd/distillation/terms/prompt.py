"""Terms with prompts that are first tuned on the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.stage import StageTerm
from nnunet_kd.losses.chunks import is_large
from nnunet_kd.losses.features import check_number


class PromptTerm(StageTerm):
    """A :class:`StageTerm` whose adapters hold prompts, which are tuned on the teacher before anything is distilled.

    Args:
        name: As for :class:`StageTerm`.
        loss: As for :class:`StageTerm`.
        num_epochs: As for :class:`StageTerm`.
        prompt_epochs: The length of the tuning: a whole number of epochs, or a fraction of the training (0.0 to 1.0).
            The ramp begins after it.
        ramp: As for :class:`StageTerm`.
        common: ``weight``, ``stages`` and ``projection``.
    """

    recorded: ClassVar[tuple[str, ...]] = (*StageTerm.recorded, "prompt_epochs")

    def __init__(
        self,
        name: str,
        loss: Any,
        num_epochs: int,
        *,
        prompt_epochs: float = 0.05,
        ramp: Sequence[float] | None = None,
        **common: Any,
    ) -> None:
        self.prompt_epochs = _read_prompt_epochs(prompt_epochs, num_epochs)
        super().__init__(name, loss, num_epochs - self.prompt_epochs, ramp=ramp, **common)

    def weight_at(self, epoch: int) -> float:
        """Return 0 while the prompts are tuned; the ramp counts from the end of the tuning."""
        return 0.0 if self.tunes_at(epoch) else super().weight_at(epoch - self.prompt_epochs)

    @property
    def tuning_name(self) -> str:
        """The name of the prompts' loss in the log."""
        return f"{self.name}_prompts"

    def tunes_at(self, epoch: int) -> bool:
        """Return whether the prompts are still tuned in ``epoch``."""
        return epoch < self.prompt_epochs

    def tune(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return nnU-Net's loss of the teacher on prompted features, plus the mean redundancy of the prompts."""
        features = list(step.teacher_encoder)
        redundancies = []
        for (_, j), adapter in zip(self.pairs(step.stages), adapters, strict=True):
            features[j], redundancy = self._prompted(features[j], adapter)
            redundancies.append(redundancy)
        assert step.teacher is not None
        segmentation = step.task_loss(step.teacher.decode(features), step.targets[0])
        total: Tensor = sum(redundancies[1:], redundancies[0])
        return segmentation + total / len(redundancies)

    def _prompted(self, features: Tensor, adapter: nn.Module) -> tuple[Tensor, Tensor]:
        """Return prompted features and redundancy, of large features case by case, computed again for the gradient."""
        if not is_large(features):
            whole: tuple[Tensor, Tensor] = self.loss.tuning(features, adapter)
            return whole
        options: Any = {"use_reentrant": False, "preserve_rng_state": False}
        cases = [checkpoint(self.loss.tuning, case, adapter, **options) for case in torch.split(features, 1)]
        prompted, redundancies = zip(*cases, strict=True)
        return torch.cat(prompted), torch.stack(redundancies).mean()

    def freeze(self, adapters: nn.ModuleList) -> None:
        """Exclude the projections from training, but not the prompts."""
        for adapter in adapters:
            adapter.phi.requires_grad_(False)

    def frozen(self, epoch: int, adapters: Any) -> Iterable[nn.Parameter]:
        """Return the prompts' parameters after the tuning."""
        return () if self.tunes_at(epoch) else [p for adapter in adapters for p in adapter.prompts.parameters()]

    def __str__(self) -> str:
        return f"{super().__str__()}, prompts tuned for {self.prompt_epochs} epochs"


def _read_prompt_epochs(given: float, num_epochs: int) -> int:
    check_number("prompt_epochs", given)
    epochs = given
    if isinstance(epochs, float):
        if epochs > 1:
            raise ValueError(
                f"prompt_epochs is a whole number of epochs, or a fraction of the training (0.0 to 1.0), got {epochs}"
            )
        epochs = math.ceil(epochs * num_epochs)
    if epochs >= num_epochs:
        raise ValueError(f"prompt_epochs {given:g} leaves none of {num_epochs} epochs for the student")
    return int(epochs)
