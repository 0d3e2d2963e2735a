"""A student's experiment as its plans and its trainer class ask for it: nothing is changed or written."""

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
    """A student's experiment: its plans (derived from the teacher's where they named no student) and settings.

    Attributes:
        student: The student's plans, configuration and ``dataset.json``.
        fold: The fold it trains.
        settings: The ``nnunet_kd`` block, with the trainer's own settings where it says nothing.
        terms: What is distilled.
        method: ``nnunet_kd.method`` as the trainer's own settings; ``None`` where it holds numbers of terms.
    """

    student: Experiment
    fold: int | str
    settings: Settings
    terms: list[Term]
    method: Any = None

    @property
    def leakage(self) -> str | None:
        """A warning where the settings let the teacher see validation cases; no teacher is needed to know."""
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
        """The term that reads stored soft labels, if there is one and it has a weight."""
        found = [term for term in self.terms if isinstance(term, SoftLabelTerm) and term.weight > 0]
        return found[0] if found else None

    def distiller(self) -> Distiller:
        """Return what computes the terms; no teacher is attached to it yet."""
        labels = PlansManager(self.student.plans).get_label_manager(self.student.dataset_json)
        return Distiller(self.terms, LabelCodes(labels))

    def rescheduled(self, trainer: TrainerKind, schedule: Mapping[str, Any]) -> Preparation:
        """Return the same with another schedule, which the terms follow.

        Raises:
            ValueError: If they cannot.
        """
        settings = replace(self.settings, training=replace(self.settings.training, **schedule))
        return replace(self, settings=settings, terms=_terms(trainer, settings))


def prepare(trainer: TrainerKind, student: Experiment, fold: int | str) -> Preparation:
    """Read the ``nnunet_kd`` block for one trainer class.

    Args:
        trainer: The class, or whatever declares the same.
        student: Plans that name a student, or the teacher's, of which one is derived.
        fold: The fold to train.

    Raises:
        ValueError: For a block that is not valid.
    """
    settings = read_settings(student.plans)
    settings = replace(settings, training=_with_class_attributes(trainer, settings, student.plans))
    plans = _student_plans(trainer, student, settings.student)
    terms = _terms(trainer, settings)
    for key in ("optimizer", "initial_weights"):
        if trainer.method is not None and getattr(settings.training, key) is not None:
            raise ValueError(f"{BLOCK}.training.{key}: {trainer.__name__} has its own")
    method = None if trainer.method is None else read_section(trainer.method, settings.method, "method")
    return Preparation(Experiment(plans, student.configuration, student.dataset_json), fold, settings, terms, method)


def _terms(trainer: TrainerKind, settings: Settings) -> list[Term]:
    return build_terms(trainer.terms, settings.method, settings.training.num_epochs or int(SCHEDULE["num_epochs"]))


def _with_class_attributes(trainer: TrainerKind, settings: Settings, plans: Plans) -> TrainingSettings:
    """Class attributes of the trainer where the block says nothing; of the schedule, ``null`` says nothing."""
    block = plans.get(BLOCK, {}).get("training", {})
    given = {key for key, value in block.items() if value is not None or key not in SCHEDULE}
    recipe = {} if "terms" in settings.method else trainer.recipe
    names = [entry.name for entry in fields(TrainingSettings) if entry.name not in given]
    own = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    return replace(settings.training, **own, **{name: recipe[name] for name in names if name in recipe})


def _student_plans(trainer: TrainerKind, experiment: Experiment, student: StudentSettings | None) -> Plans:
    """Plans of a student as they are; others with the widths and the network that block or trainer asks for."""
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
            f"{trainer.__name__} trains configurations {', '.join(derived['configurations'])}, not "
            f"{experiment.configuration}"
        )
    return derived


def check_network(student: nn.Module, class_name: str, trainer: str) -> None:
    """Check that the plans name the network a trainer is made for.

    Raises:
        ValueError: With the command that makes such plans.
    """
    kind = type(student)
    if f"{kind.__module__}.{kind.__qualname__}" != class_name:
        module, _, wanted = class_name.rpartition(".")
        raise ValueError(
            f"{trainer} trains {wanted}, the plans name {kind.__qualname__}: make plans with nnunet_kd plan --network "
            f"{module.rpartition('.')[2]}"
        )
