"""What a distillation term sees of one training step."""

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
        logits: ``(B, heads, *patch)``.
        valid: Where there are any, boolean ``(B, 1, *patch)``.
    """

    logits: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TrainStep:
    """Outputs of student and teacher for one batch; the teacher's are empty where no term needs them.

    Attributes:
        logits: The student's, finest scale first; one tensor without deep supervision.
        encoder: Features of the student's encoder stages, highest resolution first; empty where no term reads them.
        decoder: Features of the student's decoder stages, highest resolution (the last) first; empty where no term
            reads them.
        teacher_logits: Like ``logits``, at the scales the teacher was trained at.
        teacher_encoder: Like ``encoder``.
        stages: Pairs (student stage, teacher stage) on the same grid.
        targets: nnU-Net's targets, one for each of the student's scales.
        labels: Reads the targets.
        teacher: The teacher itself, for terms that run a part of it again.
        task_loss: nnU-Net's loss of logits and target at the finest scale.
        soft_labels: Stored soft labels; ``None`` where no term reads them.
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
