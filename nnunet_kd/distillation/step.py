"""The inputs of a distillation term in one training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.teacher import Teacher


class SoftLabels(NamedTuple):
    """Stored logits of a teacher, for one batch.

    Attributes:
        logits: The teacher's logits, ``(B, heads, *patch)``.
        valid: The mask of voxels that have soft labels, boolean ``(B, 1, *patch)``.
    """

    logits: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TrainStep:
    """Outputs of student and teacher for one batch; the teacher's are empty if no term needs them.

    Attributes:
        logits: The student's logits, finest scale first; one tensor without deep supervision.
        encoder: Features of the student's encoder stages, highest resolution first; empty if no term reads them.
        decoder: Features of the student's decoder stages, highest resolution (the last stage) first; empty if no term
            reads them.
        teacher_logits: The teacher's logits at the scales it was trained with, finest first.
        teacher_encoder: Features of the teacher's encoder stages, highest resolution first.
        stages: Pairs (student stage, teacher stage) on the same grid.
        targets: nnU-Net's targets, one for each of the student's scales.
        labels: The reader of the targets.
        teacher: The teacher itself, for terms that run a part of it again.
        task_loss: nnU-Net's loss of logits and target at the finest scale.
        soft_labels: The stored soft labels; ``None`` if no term reads them.
        unlabelled: Which cases of the batch have no reference and learn from soft labels alone, boolean ``(B,)``;
            ``None`` if none do.
    """

    logits: list[Tensor]
    encoder: list[Tensor]
    decoder: list[Tensor]
    teacher_logits: list[Tensor]
    teacher_encoder: list[Tensor]
    stages: list[tuple[int, int]]
    targets: list[Tensor]
    labels: LabelCodes
    teacher: Teacher | TeacherEnsemble | None
    task_loss: Callable[[Tensor, Tensor], Tensor]
    soft_labels: SoftLabels | None = None
    unlabelled: Tensor | None = None
