"""Everything that is read and checked before a training may write its first file."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.planning import BLOCK, Settings, read_settings, student_plans
from nnunet_kd.teachers.nnunet import Experiment, Teacher, find_teacher, load_teacher
from nnunet_kd.teachers.stages import EncoderStages, encoder_stages, match_stages
from nnunet_kd.training.terms import ConfiguredTerm

if TYPE_CHECKING:
    from nnunet_kd.training.trainer import DistillationTrainer

NNUNET_EPOCHS = 1000


@dataclass(frozen=True)
class Preparation:
    """A student's experiment: its plans (derived from the teacher's where they named no student) and settings."""

    student: Experiment
    fold: int | str
    settings: Settings
    terms: list[ConfiguredTerm]


@dataclass(frozen=True)
class AttachedTeacher:
    """The teacher of one training, which stages of student and teacher belong together, and what has leaked."""

    teacher: Teacher
    matched_stages: list[tuple[int, int]]
    leakage: str | None


def prepare(trainer: type[DistillationTrainer], student: Experiment, fold: int | str) -> Preparation:
    """Read the ``nnunet_kd`` block for one trainer class. Nothing is changed or written.

    Raises:
        ValueError: For a block that is not valid.
    """
    settings = read_settings(student.plans)
    plans = deepcopy(student.plans) if settings.student else student_plans(student.plans, trainer.reduction)
    epochs = settings.training.num_epochs
    if epochs is None:
        epochs = int(getattr(trainer, "num_epochs", NNUNET_EPOCHS))
    terms = [term.configured(settings.method, epochs) for term in trainer.terms]
    return Preparation(Experiment(plans, student.configuration, student.dataset_json), fold, settings, terms)


def attach_teacher(trainer: type[DistillationTrainer], preparation: Preparation) -> AttachedTeacher:
    """Find, check and load the teacher; a leak is noted in the student's plans, which nnU-Net saves with the results.

    Raises:
        FileNotFoundError: Where the teacher is missing.
        ValueError: Where it cannot be read or does not fit.
        NotImplementedError: For networks without encoder stages.
    """
    settings, student = preparation.settings.teacher, preparation.student
    files = find_teacher(settings, student, preparation.fold)
    own_stages = _stages_of_student(trainer, student)
    teacher = load_teacher(files, settings.trust_checkpoint)
    pairs = match_stages(own_stages, teacher.stages)
    patch = PlansManager(student.plans).get_configuration(student.configuration).patch_size
    coarsest = teacher.stages.strides[-1]
    if any(size % stride for size, stride in zip(patch, coarsest, strict=True)):
        raise ValueError(
            f"the student's patch {list(patch)} cannot be divided by the teacher's strides {list(coarsest)}"
        )
    if files.leakage is not None:
        student.plans[BLOCK].setdefault("teacher", {})["leakage"] = files.leakage
    return AttachedTeacher(teacher, pairs, files.leakage)


def _stages_of_student(trainer: type[DistillationTrainer], student: Experiment) -> EncoderStages:
    """Of the network the plans ask for, built without memory."""
    plans = PlansManager(student.plans)
    configuration = plans.get_configuration(student.configuration)
    with torch.device("meta"):
        build = trainer.build_network_architecture  # type: ignore[misc]  # a static method; instances shadow it
        network = build(
            plans,
            configuration,
            determine_num_input_channels(plans, configuration, student.dataset_json),
            plans.get_label_manager(student.dataset_json).num_segmentation_heads,
            False,
        )
    return encoder_stages(network)
