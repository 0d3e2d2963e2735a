"""What a distillation term sees of one training step, and what a step leaves for the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.teacher import Teacher


class LabelCodes:
    """Reads nnU-Net's training targets: which voxels count, and which class each of them has.

    A target is ``(B, 1, *spatial)`` with the label, or one channel a region, and one more that marks ignored voxels
    where there are any. Regions may overlap: voxels have the same class where they are in the same regions.

    Args:
        label_manager: nnU-Net's.
    """

    def __init__(self, label_manager: Any) -> None:
        self.regions: bool = label_manager.has_regions
        self._num_regions = 0
        self._sorted: Tensor | None = None
        self.ignore_label: int | None = label_manager.ignore_label
        if self.regions:
            labels = [label for label in label_manager.all_labels if label != self.ignore_label]
            regions = [
                region if isinstance(region, tuple) else (region,) for region in label_manager.foreground_regions
            ]
            codes = sorted({sum(1 << i for i, region in enumerate(regions) if label in region) for label in labels})
            self.num_classes = len(codes)
            self._num_regions = len(regions)
            self._codes = codes
        else:
            self.num_classes = label_manager.num_segmentation_heads

    def check_classes(self) -> None:
        """Whether :meth:`classes` can tell the regions apart.

        Raises:
            NotImplementedError: For more regions than a whole number has bits.
        """
        if self._num_regions > 62:
            raise NotImplementedError(f"classes of {self._num_regions} regions: at most 62 can be told apart")

    def valid(self, target: Tensor) -> Tensor | None:
        """Voxels that count, boolean ``(B, 1, *spatial)``; ``None`` where all do."""
        if self.ignore_label is None:
            return None
        return ~target[:, -1:].bool() if self.regions else target != self.ignore_label

    def classes(self, target: Tensor) -> Tensor:
        """Class of every voxel, ``(B, *spatial)``, whole numbers from 0; -1 where it is ignored."""
        if self.regions:
            regions = target if self.ignore_label is None else target[:, :-1]
            bits = 1 << torch.arange(regions.shape[1], device=target.device)
            codes = (regions.long() * bits.view(-1, *[1] * (target.ndim - 2))).sum(1)
            if self._sorted is None or self._sorted.device != target.device:
                self._sorted = torch.tensor(self._codes, device=target.device)
            classes = torch.searchsorted(self._sorted, codes)
        else:
            classes = target[:, 0].long()
        valid = self.valid(target)
        return classes if valid is None else classes.masked_fill(~valid[:, 0], -1)


@dataclass(frozen=True)
class TrainStep:
    """Outputs of student and teacher for one batch; of the teacher only where a term needs one.

    Attributes:
        student_logits: Finest first; one without deep supervision.
        student_features: Encoder stages, highest resolution first; empty where no term reads them.
        student_levels: Decoder stages, highest resolution (the last) first; empty where no term reads them.
        teacher_logits: As the student's, of the resolutions the teacher was trained at.
        teacher_features: As the student's.
        stages: Pairs (student stage, teacher stage) on the same grid.
        targets: nnU-Net's, one for each of the student's logits.
        labels: Reads the targets.
        teacher: For terms that run a part of it again.
        soft_labels: Stored logits of a teacher, ``(B, heads, *patch)``; ``None`` where no term reads them.
        soft_valid: Where there are any, boolean ``(B, 1, *patch)``.
        task_loss: nnU-Net's loss of logits and target at the finest resolution.
    """

    student_logits: list[Tensor]
    student_features: list[Tensor]
    student_levels: list[Tensor]
    teacher_logits: list[Tensor]
    teacher_features: list[Tensor]
    stages: list[tuple[int, int]]
    targets: list[Tensor]
    labels: LabelCodes
    teacher: Teacher | TeacherEnsemble | None
    task_loss: Callable[[Tensor, Tensor], Tensor]
    soft_labels: Tensor | None = None
    soft_valid: Tensor | None = None


def as_numbers(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scalars of one step, which leave the device in one transfer."""
    numbers = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, numbers.cpu().numpy(), strict=True))


def means(outputs: list[dict[str, Any]], is_ddp: bool) -> Mapping[str, float]:
    """Mean of every value over the steps of an epoch where it is finite, and over the processes."""
    here = {name: _finite_mean([output[name] for output in outputs]) for name in outputs[0]}
    if not is_ddp:
        return here
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, here)
    return {name: _finite_mean([process[name] for process in gathered]) for name in here}


def with_finite_loss(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The losses of an epoch for nnU-Net's log; steps without a finite one count as their mean."""
    mean = _finite_mean([output["loss"] for output in outputs])
    return [{"loss": output["loss"] if np.isfinite(output["loss"]) else mean} for output in outputs]


def _finite_mean(values: list[Any]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
