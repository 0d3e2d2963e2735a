"""An ensemble of several teachers that acts as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.networks.stages import EncoderStages
from nnunet_kd.teachers.teacher import Teacher


class TeacherEnsemble(nn.Module):
    """Several teachers whose probabilities and features are averaged.

    The mean probabilities are returned as logits. The logits of classes are determined only up to a constant per voxel;
    the mean of the teachers' constants is used, so that an ensemble of equal teachers gives the logits of one teacher.

    Args:
        teachers: The teachers, at least one.
        regions: Whether the channels are regions (sigmoid) instead of classes (softmax).

    Raises:
        ValueError: If the teachers give features and their stages differ.
    """

    def __init__(self, teachers: Sequence[Teacher], regions: bool) -> None:
        super().__init__()
        self.stages: EncoderStages | None = teachers[0].stages
        for number, teacher in enumerate(teachers):
            if teacher.gives_features and teacher.stages != self.stages:
                raise ValueError(
                    f"features of several teachers are averaged only if all have the same stages: teacher 0 has "
                    f"{_described(self.stages)}, teacher {number} {_described(teacher.stages)}"
                )
        self.teachers = nn.ModuleList(teachers)
        self.regions = regions

    def settle(self, device: torch.device, compiles: bool = False) -> None:
        """Settle every teacher; see :meth:`Teacher.settle`."""
        for teacher in self.teachers:
            teacher.settle(device, compiles)  # type: ignore[operator]

    def forward(self, images: Tensor, logits: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the mean logits and features as :meth:`Teacher.forward`, at the scales that all teachers share."""
        by_grid = []
        features: list[Tensor] = []
        for teacher in self.teachers:  # only the running mean of the features is kept in memory
            scales, stages = teacher(images, logits)
            stages = [stage / len(self.teachers) for stage in stages]  # divided first: a sum can overflow float16
            by_grid.append({scale.shape[2:]: scale for scale in scales})
            features = [a + b for a, b in zip(features, stages, strict=True)] if features else stages
        shared = [grid for grid in by_grid[0] if all(grid in scales for scales in by_grid)]
        return [self._mean([scales[grid] for scales in by_grid]) for grid in shared], features

    def _mean(self, logits: list[Tensor]) -> Tensor:
        stacked = torch.stack(logits).float()
        if self.regions:  # the two terms log(1/n) cancel
            inside, outside = F.logsigmoid(stacked).logsumexp(0), F.logsigmoid(-stacked).logsumexp(0)
            return inside - outside
        constants = stacked.logsumexp(2, keepdim=True)
        log_sums = (stacked - constants).logsumexp(0)
        return log_sums + constants.mean(0) - math.log(len(logits))

    def decode(self, features: list[Tensor]) -> Tensor:
        """Refuse to decode features, because several teachers have no common decoder.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("several teachers have no common decoder")


def _described(stages: EncoderStages | None) -> str:
    return "none" if stages is None else f"widths {list(stages.widths)} with strides {list(stages.strides)}"
