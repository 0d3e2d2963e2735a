"""A student's experiment, derived from its plans and its trainer class without changing or writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_kd.distillation.methods import build_terms, check_soft_labels
from nnunet_kd.distillation.terms import SoftLabelTerm, Term
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import plans_of_student
from nnunet_kd.nnunet.settings import BLOCK, Settings, read_section, settings_of_training
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
        return isinstance(self.settings.training.initial_weights, str)

    @property
    def vmamba(self) -> Path | None:
        """The file with VMamba's weights, from which the student starts; ``None`` if it does not."""
        start = self.settings.training.initial_weights
        return Path(start["vmamba"]) if isinstance(start, dict) else None

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
    settings = settings_of_training(student.plans, trainer)
    for key in ("optimizer", "initial_weights", "lr_schedule"):
        if trainer.method is not None and getattr(settings.training, key) is not None:
            raise ValueError(f"{BLOCK}.training.{key}: {trainer.__name__} has its own, remove the key")
    method = None if trainer.method is None else read_section(trainer.method, settings.method, "method")
    plans = plans_of_student(student, settings.student, trainer.reduction, trainer.network_of_plans, trainer.__name__)
    terms = build_terms(trainer.terms, settings.method, settings.training.epochs)
    if settings.training.unlabelled == "hard" and trainer.terms is not None:
        check_soft_labels(terms, trainer.__name__)
    return Preparation(Experiment(plans, student.configuration, student.dataset_json), fold, settings, terms, method)


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
