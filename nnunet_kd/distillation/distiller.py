"""The distiller, which computes all losses that a training adds to nnU-Net's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.distillation.step import SoftLabels, TrainStep
from nnunet_kd.distillation.student import StudentOutputs
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.distillation.terms import Term
from nnunet_kd.networks.stages import EncoderStages, decoder_stages, encoder_stages, match_stages
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.teacher import Teacher


class Distiller:
    """Map the images, student outputs and targets of one batch to named losses.

    Args:
        terms: The terms to compute.
        labels: The reader of nnU-Net's targets.
        patch_size: The size of the training's patches, for adapters that depend on it; ``None`` if it is not known.

    Attributes:
        teacher: The teacher, set by :meth:`attach`; ``None`` before that or if no term needs one.
        teacher_stages: The teacher's encoder stages, from which adapters are built. A training that is only validated
            sets them without a teacher.
        stages: Pairs (student stage, teacher stage) on the same grid.
    """

    def __init__(self, terms: Sequence[Term], labels: LabelCodes, patch_size: tuple[int, ...] | None = None) -> None:
        self.terms = list(terms)
        self.labels = labels
        self.patch_size = patch_size
        self.teacher: Teacher | TeacherEnsemble | None = None
        self.teacher_stages: EncoderStages | None = None
        self.stages: list[tuple[int, int]] = []

    @classmethod
    def for_student(cls, terms: Sequence[Term], student: Experiment) -> Distiller:
        """Return a distiller that reads the targets of a student's experiment, without a teacher yet.

        Raises:
            ValueError: If a term compares the cases of a batch, and the batch has one.
        """
        for term in terms:
            term.check_batch(student.batch_size)
        return cls(terms, LabelCodes(student.label_manager), student.patch_size)

    # ---- What the terms ask for

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares the student with a teacher that runs beside it."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def reads_encoder(self) -> bool:
        """Whether any term reads features of the student's encoder."""
        return any(term.reads_encoder for term in self.terms)

    @property
    def reads_teacher_encoder(self) -> bool:
        """Whether any term compares features of the student's encoder with the teacher's."""
        return any(term.needs_teacher and term.reads_encoder for term in self.terms)

    @property
    def reads_decoder(self) -> bool:
        """Whether any term reads features of the student's decoder."""
        return any(term.reads_decoder for term in self.terms)

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether any term needs the teacher's decoder."""
        return any(term.reads_logits or term.tuning_name is not None for term in self.terms)

    # ---- Teacher and adapters

    def check(self, student: EncoderStages, teacher: EncoderStages) -> list[tuple[int, int]]:
        """Match the stages of student and teacher, and check that every term can use the pairs.

        Raises:
            ValueError: If no stages match, or if a term asks for a stage without a match.
            NotImplementedError: If a term needs classes and there are too many regions to tell apart.
        """
        pairs = match_stages(student, teacher)
        for term in self.terms:
            term.check_pairs(pairs)
            if getattr(term.loss, "needs_classes", False):
                self.labels.check_classes()
        return pairs

    def attach(self, teacher: Teacher | TeacherEnsemble, stages: list[tuple[int, int]]) -> None:
        """Set the teacher of this training and the stage pairs that :meth:`check` found."""
        self.teacher = teacher
        self.teacher_stages = teacher.stages
        self.stages = stages

    def adapters(self, student: nn.Module) -> nn.ModuleDict:
        """Build the modules that train with a student: term name -> its adapters.

        Raises:
            NotImplementedError: If a term reads features that the student does not expose.
        """
        stages = replace(encoder_stages(student), patch=self.patch_size) if self.reads_encoder else None
        decoder = len(decoder_stages(student)) if self.reads_decoder else 0
        adapters = nn.ModuleDict()
        for term in self.terms:
            adapters[term.name] = term.adapters(stages, self.teacher_stages, decoder, self.labels.num_classes)
        return adapters

    def frozen(self, epoch: int, adapters: Any) -> list[nn.Parameter]:
        """Return the adapters' parameters that must not change in ``epoch``."""
        return [parameter for term in self.terms for parameter in term.frozen(epoch, adapters[term.name])]

    # ---- One step

    def __call__(
        self,
        images: Tensor,
        outputs: StudentOutputs,
        target: Tensor | list[Tensor],
        epoch: int,
        *,
        adapters: Any,
        task_loss: Callable[[Tensor, Tensor], Tensor],
        soft_labels: SoftLabels | None = None,
        unlabelled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute every term with a weight above 0 in this epoch, and every tuning loss.

        The teacher runs at most once, and its decoder only if a term needs it. What no later term reads of its
        outputs is freed.

        Args:
            images: The images, ``(B, channels, *patch)``.
            outputs: The student's outputs for them.
            target: nnU-Net's target, a list with one per scale under deep supervision.
            epoch: The epoch, counted from 0.
            adapters: Term name -> its adapters.
            task_loss: nnU-Net's loss at the finest scale.
            soft_labels: The stored soft labels of the batch, if a term reads them.
            unlabelled: Which cases of the batch learn from soft labels alone, boolean ``(B,)``; ``None`` if none do.

        Returns:
            Name in the log -> unweighted scalar loss.
        """
        active = [term for term in self.terms if term.weight_at(epoch) > 0]
        tuning = [term for term in self.terms if term.tunes_at(epoch)]
        teacher = None
        logits: list[Tensor] = []
        encoder: list[Tensor] = []
        if any(term.needs_teacher for term in (*active, *tuning)):
            teacher = self.teacher
            assert teacher is not None, "a teacher is attached before the first step"
            logits, encoder = teacher(images, any(term.reads_logits for term in active))
        step = TrainStep(
            logits=[outputs.logits] if isinstance(outputs.logits, Tensor) else list(outputs.logits),
            encoder=outputs.encoder,
            decoder=outputs.decoder,
            teacher_logits=[*logits],
            teacher_encoder=[*encoder],
            stages=[] if teacher is None else self.stages,
            targets=target if isinstance(target, list) else [target],
            labels=self.labels,
            teacher=teacher,
            task_loss=task_loss,
            soft_labels=soft_labels,
            unlabelled=unlabelled,
        )
        del logits, encoder
        values = {}
        for number, term in enumerate(active):
            if not tuning:  # for which the teacher decodes all its features
                _free(step, active[number:])
            values[term.name] = term(step, adapters[term.name])
        tuned = {str(term.tuning_name): term.tune(step, adapters[term.name]) for term in tuning}
        return {**values, **tuned}

    def total(self, segmentation: Tensor, losses: dict[str, Tensor], epoch: int, unused: Iterable[Tensor]) -> Tensor:
        """Add the weighted losses of a step to nnU-Net's own.

        Args:
            segmentation: nnU-Net's loss, scalar.
            losses: The losses that the distiller returned for the step.
            epoch: The epoch, counted from 0.
            unused: The adapters' parameters. Those without a gradient get one of zero, since DDP would fail without it
                and the optimizer would treat them differently.
        """
        share = 1.0
        total = torch.zeros_like(segmentation)
        for term in self.terms:
            weight = term.weight_at(epoch)
            share -= weight if term.convex else 0.0
            if term.name in losses:
                total = total + weight * losses[term.name]
        tuned = [losses[term.tuning_name] for term in self.terms if term.tuning_name in losses]
        total = share * segmentation + sum(tuned, total)
        if any(term.name not in losses or term.tuning_name is not None for term in self.terms):
            total = total + 0 * sum(parameter.sum() for parameter in unused)
        return total

    # ---- The log, and checkpoints

    @property
    def names(self) -> list[str]:
        """The names of all losses in the log: every term, then the tuning losses."""
        tuning = [term.tuning_name for term in self.terms if term.tuning_name is not None]
        return [*(term.name for term in self.terms), *tuning]

    @property
    def places(self) -> list[Any]:
        """The names and stages of the terms in order, on which the adapters and the optimizer's state depend."""
        return [[term.name, term.stages] for term in self.terms]


def _free(step: TrainStep, terms: Sequence[Term]) -> None:
    """Free what none of the terms reads of the teacher: its stages become empty tensors."""
    read = {stage for term in terms for stage in term.taught_stages(step)}
    for stage, features in enumerate(step.teacher_encoder):
        if stage not in read:
            step.teacher_encoder[stage] = features.new_empty(0)
    if not any(term.reads_logits for term in terms):
        step.teacher_logits.clear()
