"""A student's experiment, derived from its plans and its trainer class without changing or writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import build_terms
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.distillation.terms import SoftLabelTerm, Term
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.settings import (
    BLOCK,
    SCHEDULE,
    Plans,
    Settings,
    StudentSettings,
    TrainingSettings,
    read_section,
    read_settings,
)
from nnunet_kd.teachers.leakage import leakage
from nnunet_kd.training.kind import TrainerKind


@dataclass(frozen=True)
class Preparation:
    """The plans and the settings of a student; plans that name no student are derived from the teacher's.

    Attributes:
        student: The student's plans, configuration and ``dataset.json``.
        fold: The fold that is trained.
        settings: The ``nnunet_kd`` block, completed with the trainer's settings.
        terms: The distillation terms.
        method: ``nnunet_kd.method`` as the trainer's dataclass; ``None`` if it holds settings of terms.
    """

    student: Experiment
    fold: int | str
    settings: Settings
    terms: list[Term]
    method: Any = None

    @property
    def leakage(self) -> str | None:
        """A warning if the settings let the teacher see validation cases, without looking at the teacher."""
        return leakage(self.settings.teachers, self.fold) if self.uses_teacher else None

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the student's initial weights come from the teacher."""
        return self.settings.training.initial_weights is not None

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares the student with a teacher that runs beside it."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def uses_teacher(self) -> bool:
        """Whether anything comes from the teacher."""
        return self.needs_teacher or self.starts_from_teacher

    @property
    def soft_label_term(self) -> SoftLabelTerm | None:
        """The term whose stored soft labels are read; ``None`` without one.

        A term with a weight of 0 reads none, unless they are the segmentations of cases without a reference.
        """
        hard = self.settings.training.unlabelled == "hard" and "ignore" in self.student.dataset_json["labels"]
        found = [term for term in self.terms if isinstance(term, SoftLabelTerm) and (hard or term.weight > 0)]
        return found[0] if found else None

    def distiller(self) -> Distiller:
        """Return a distiller for the terms, without a teacher yet."""
        labels = PlansManager(self.student.plans).get_label_manager(self.student.dataset_json)
        return Distiller(self.terms, LabelCodes(labels))

    def rescheduled(self, trainer: TrainerKind, schedule: Mapping[str, Any]) -> Preparation:
        """Return a copy with another schedule and terms built for it.

        Raises:
            ValueError: If a term does not fit the schedule.
        """
        settings = replace(self.settings, training=replace(self.settings.training, **schedule))
        return replace(
            self, settings=settings, terms=build_terms(trainer.terms, settings.method, settings.training.epochs)
        )


def prepare(trainer: TrainerKind, student: Experiment, fold: int | str) -> Preparation:
    """Prepare a student's experiment for one trainer class.

    Args:
        trainer: The trainer class, or an object with the same attributes.
        student: An experiment whose plans name a student, or the teacher's, from which one is derived.
        fold: The fold to train.

    Raises:
        ValueError: If the ``nnunet_kd`` block is not valid.
    """
    settings = read_settings(student.plans)
    settings = replace(settings, training=_with_class_attributes(trainer, settings, student.plans))
    plans = _student_plans(trainer, student, settings.student)
    terms = build_terms(trainer.terms, settings.method, settings.training.epochs)
    for key in ("optimizer", "initial_weights"):
        if trainer.method is not None and getattr(settings.training, key) is not None:
            raise ValueError(f"{BLOCK}.training.{key}: {trainer.__name__} has its own, remove the key")
    _check_unlabelled(trainer, settings, terms)
    method = None if trainer.method is None else read_section(trainer.method, settings.method, "method")
    return Preparation(Experiment(plans, student.configuration, student.dataset_json), fold, settings, terms, method)


def _check_unlabelled(trainer: TrainerKind, settings: Settings, terms: list[Term]) -> None:
    """Refuse ``"hard"`` without a term that names soft labels; a trainer without terms can share another's plans."""
    if settings.training.unlabelled != "hard" or trainer.terms is None:
        return
    if not any(isinstance(term, SoftLabelTerm) for term in terms):
        raise ValueError(
            f'{BLOCK}.training.unlabelled: "hard" takes the segmentations of stored soft labels, which no term of '
            f"{trainer.__name__} reads: train with nnUNetTrainerSoftKD, or add the term "
            '{"name": "soft_labels", "weight": 0}'
        )


def _with_class_attributes(trainer: TrainerKind, settings: Settings, plans: Plans) -> TrainingSettings:
    """Complete the training settings with class attributes; ``null`` in the schedule counts as not set."""
    block = plans.get(BLOCK, {}).get("training", {})
    given = {key for key, value in block.items() if value is not None or key not in SCHEDULE}
    recipe = {} if "terms" in settings.method else dict(trainer.recipe)
    if trainer.starts_from_named_teacher and not names_teacher(plans):
        recipe.pop("initial_weights", None)
    names = [entry.name for entry in fields(TrainingSettings) if entry.name not in given]
    own = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    return replace(settings.training, **own, **{name: recipe[name] for name in names if name in recipe})


def names_teacher(plans: Plans) -> bool:
    """Return whether plans name a teacher; a record of leakage alone does not."""
    teacher = plans.get(BLOCK, {}).get("teacher", {})
    return isinstance(teacher, list) or bool({*teacher} - {"leakage"})


def _student_plans(trainer: TrainerKind, experiment: Experiment, student: StudentSettings | None) -> Plans:
    """Return a student's plans unchanged, and derive other plans as the block or the trainer asks."""
    plans = experiment.plans
    if student is not None and student.source_plans not in (None, plans["plans_name"]):
        return deepcopy(plans)
    if student is None and trainer.reduction == 1 and trainer.network_of_plans is None:
        return deepcopy(plans)
    reduction, least = (trainer.reduction, 8) if student is None else (student.reduction, student.min_features)
    regions = PlansManager(plans).get_label_manager(experiment.dataset_json).has_regions
    derived = student_plans(
        plans, reduction, least, network=trainer.network_of_plans, regions=regions, trained=experiment.configuration
    )
    if experiment.configuration not in derived["configurations"]:
        raise ValueError(
            f"{trainer.__name__} trains the configurations {', '.join(derived['configurations'])}, not "
            f"{experiment.configuration}"
        )
    return derived


def check_network(student: nn.Module, class_name: str, trainer: str) -> None:
    """Check that the plans name the network that the trainer is made for.

    Raises:
        ValueError: If they do not; the message has the command that makes such plans.
    """
    kind = type(student)
    if f"{kind.__module__}.{kind.__qualname__}" != class_name:
        module, _, wanted = class_name.rpartition(".")
        raise ValueError(
            f"{trainer} trains {wanted}, but the plans name {kind.__qualname__}: make plans with nnunet_kd plan "
            f"--network {module.rpartition('.')[2]}"
        )
