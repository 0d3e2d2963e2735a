"""Everything that is read and checked before a training may write its first file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_kd.distillation.methods import active_terms
from nnunet_kd.distillation.step import LabelCodes
from nnunet_kd.distillation.terms import ActiveSoftLabelTerm, ActiveStageTerm, ActiveTerm
from nnunet_kd.networks.stages import EncoderStages, encoder_stages, match_stages
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment, build_network
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.nnunet.settings import (
    BLOCK,
    FITTED_STARTS,
    SCHEDULE,
    Plans,
    Settings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
    read_section,
    read_settings,
)
from nnunet_kd.pruning.selection import selected_weights
from nnunet_kd.storage.integrity import file_digest, text_digest
from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.find import TeacherFiles, find_teachers
from nnunet_kd.teachers.leakage import leakage
from nnunet_kd.teachers.soft_labels import SoftLabelStore, find_store
from nnunet_kd.teachers.teacher import Teacher, load_teacher
from nnunet_kd.training.leakage import teacher_leakage

if TYPE_CHECKING:
    from nnunet_kd.training.trainer import DistillationTrainer

ORIGINS = ("teacher_checkpoints", "soft_labels_made_by")  # of a record
DIGITS = 12  # of a digest


@dataclass(frozen=True)
class Preparation:
    """A student's experiment: its plans (derived from the teacher's where they named no student) and settings.

    Attributes:
        method: ``nnunet_kd.method`` as the trainer's own settings; ``None`` where it holds keywords of terms.
    """

    student: Experiment
    fold: int | str
    settings: Settings
    terms: list[ActiveTerm]
    method: Any = None

    @property
    def leakage(self) -> str | None:
        """A warning where the settings let the teacher see validation cases; no teacher is needed to know."""
        return leakage(self.settings.teachers, self.fold) if self.uses_teacher else None

    @property
    def record(self) -> dict[str, Any]:
        """What a training depends on beside network and data, in plain values: defaults may change after it."""
        configuration = PlansManager(self.student.plans).get_configuration(self.student.configuration)
        record = _given(self.settings.training)
        del record["overwrite"]  # of no influence
        record.update(
            batch_size=int(configuration.batch_size),
            patch_size=[int(side) for side in configuration.patch_size],
            batch_dice=bool(configuration.batch_dice),
        )
        record["terms"] = [str(term) for term in self.terms]
        record["term_options"] = [term.options for term in self.terms]
        if self.method is not None:
            record["method"] = asdict(self.method)
        if self.uses_teacher:
            record["teachers"] = [_given(teacher) for teacher in self.settings.teachers]
        record.update(self.origins)
        return record

    @cached_property
    def origins(self) -> dict[str, Any]:
        """Digests of what is learnt from, as far as it is there: teachers' checkpoints, how soft labels were made.

        Another teacher may have taken the place and the name of the one of before.
        """
        found: dict[str, Any] = {}
        student = self.student
        with suppress(FileNotFoundError, ValueError):
            if self.uses_teacher:
                files = find_teachers(self.settings.teachers, student, self.fold)
                found["teacher_checkpoints"] = [file_digest(one.checkpoint)[:DIGITS] for one in files]
        with suppress(FileNotFoundError, ValueError):
            if term := soft_label_term(self.terms):
                source = _find_soft_labels(student, term).manifest.get("source", {})
                found["soft_labels_made_by"] = text_digest(json.dumps(source, sort_keys=True))[:DIGITS]
        return found

    def changes(self, before: Mapping[str, Any]) -> str:
        """What is other than in such a record of before; empty: nothing.

        A record of an earlier version does not tell the batch, or all of the terms. Of what is learnt from only what
        both know is looked at: it need not be there any more.
        """
        now = self.record
        unknown = {"batch_size", "patch_size", "batch_dice", "term_options"} - {*before}
        unknown |= {*ORIGINS} - ({*before} & {*now})
        different = [key for key in sorted({*before, *now} - unknown, key=str) if before.get(key) != now.get(key)]
        return "; ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in different)

    def rescheduled(self, trainer: type[DistillationTrainer], schedule: Mapping[str, Any]) -> Preparation:
        """With another schedule, which the terms follow.

        Raises:
            ValueError: Where they cannot.
        """
        settings = replace(self.settings, training=replace(self.settings.training, **schedule))
        return replace(self, settings=settings, terms=_terms(trainer, settings))

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the student's initial weights come from the teacher."""
        return self.settings.training.initial_weights is not None

    @property
    def uses_teacher(self) -> bool:
        """Whether anything comes from the teacher."""
        return self.needs_teacher or self.starts_from_teacher

    @property
    def needs_teacher(self) -> bool:
        """Whether any term does."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def reads_features(self) -> bool:
        """Whether any term reads the student's encoder features."""
        return any(term.reads_features for term in self.terms)

    @property
    def reads_teacher_features(self) -> bool:
        """Whether any term sets the student's encoder features beside the teacher's."""
        return any(term.needs_teacher and term.reads_features for term in self.terms)

    @property
    def reads_levels(self) -> bool:
        """Whether any term reads the student's decoder features."""
        return any(term.reads_levels for term in self.terms)


def _given(settings: TrainingSettings | TeacherSettings) -> dict[str, Any]:
    """Those that are not ``None``, in plain values."""
    return {key: value for key, value in asdict(settings).items() if value is not None}


@dataclass(frozen=True)
class AttachedTeacher:
    """The teacher of one training, which stages of student and teacher belong together, and what has leaked.

    Attributes:
        leakage: As far as it was known when the teacher was found; see :mod:`nnunet_kd.training.leakage`.
        files: Of every teacher.
    """

    teacher: Teacher | TeacherEnsemble
    matched_stages: list[tuple[int, int]]
    leakage: str | None
    files: list[TeacherFiles] = field(repr=False)


def prepare(trainer: type[DistillationTrainer], student: Experiment, fold: int | str) -> Preparation:
    """Read the ``nnunet_kd`` block for one trainer class. Nothing is changed or written.

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


def _terms(trainer: type[DistillationTrainer], settings: Settings) -> list[ActiveTerm]:
    return active_terms(trainer.terms, settings.method, settings.training.num_epochs or int(SCHEDULE["num_epochs"]))


def _with_class_attributes(trainer: type[DistillationTrainer], settings: Settings, plans: Plans) -> TrainingSettings:
    """Class attributes of the trainer where the block says nothing; of the schedule, ``null`` says nothing."""
    block = plans.get(BLOCK, {}).get("training", {})
    given = {key for key, value in block.items() if value is not None or key not in SCHEDULE}
    recipe = {} if "terms" in settings.method else trainer.recipe
    names = [entry.name for entry in fields(TrainingSettings) if entry.name not in given]
    own = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    return replace(settings.training, **own, **{name: recipe[name] for name in names if name in recipe})


def _student_plans(
    trainer: type[DistillationTrainer], experiment: Experiment, student: StudentSettings | None
) -> Plans:
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


def attach_teacher(trainer: type[DistillationTrainer], preparation: Preparation) -> AttachedTeacher:
    """Find, check and load the teacher.

    Raises:
        FileNotFoundError: Where the teacher is missing.
        ValueError: Where it cannot be read or does not fit.
        NotImplementedError: For networks or teachers a term cannot be distilled from.
    """
    student, terms = preparation.student, preparation.terms
    files = find_teachers(preparation.settings.teachers, student, preparation.fold)
    features = preparation.reads_teacher_features
    tuned = [term.name for term in terms if term.tuning_name is not None]
    logits = bool(tuned) or any(term.reads_logits for term in terms)
    if tuned and len(files) > 1:
        raise NotImplementedError(
            f"{tuned[0]} tunes prompts on one teacher, there are {len(files)}: keep one in {BLOCK}.teacher, or another "
            "term"
        )
    own_stages = encoder_stages(_student_network(trainer, student)) if features else None

    teachers = [load_teacher(one, features, logits) for one in files]
    labels = PlansManager(student.plans).get_label_manager(student.dataset_json)
    teacher = teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers, labels.has_regions)
    pairs: list[tuple[int, int]] = []
    if own_stages is not None and teacher.stages is not None:
        pairs = match_stages(own_stages, teacher.stages)
        for term in terms:
            if isinstance(term, ActiveStageTerm):
                term.pairs(pairs)
                if getattr(term.loss, "needs_classes", False):
                    LabelCodes(labels).check_classes()
    for one in teachers:
        if one.stages is not None:
            _check_patch(student, one.stages)
    return AttachedTeacher(teacher, pairs, teacher_leakage(preparation, files), files)


@dataclass(frozen=True)
class Start:
    """Initial weights of a student.

    Attributes:
        weights: As the training begins with them, or as the reconstruction of them does.
        leakage: What has leaked into them, as far as it was known when the teacher was found.
        files: Of the teacher.
        teacher: Whose outputs they are to be fitted to; ``None`` where they are not.
    """

    weights: dict[str, Tensor] = field(repr=False)  # nnU-Net writes what its trainer has into debug.json
    leakage: str | None
    files: list[TeacherFiles] = field(repr=False)
    teacher: nn.Module | None = field(default=None, repr=False)


def start_from_teacher(trainer: type[DistillationTrainer], preparation: Preparation) -> Start:
    """The student's initial weights, taken from its teacher.

    Raises:
        FileNotFoundError: Where the teacher is missing.
        ValueError: Where it cannot be read, has other layers, or there are several.
    """
    files = find_teachers(preparation.settings.teachers, preparation.student, preparation.fold)
    if len(files) > 1:
        together = ', and "method": {"terms": [{"name": "logits"}]} to let them teach together'
        raise ValueError(
            f"{BLOCK}.training.initial_weights: a student starts from one teacher, and the plans name {len(files)}: "
            f'keep one of them in {BLOCK}.teacher, or set "training": {{"initial_weights": null}}'
            f"{'' if trainer.terms is None else together}"
        )
    fitted = preparation.settings.training.initial_weights in FITTED_STARTS
    teacher = load_teacher(files[0], features=False, logits=fitted).network
    try:
        weights = selected_weights(teacher, _student_network(trainer, preparation.student))
    except ValueError as error:
        raise ValueError(f"{BLOCK}.training.initial_weights: {error}; null starts from random ones") from None
    return Start(weights, teacher_leakage(preparation, files), files, teacher if fitted else None)


def attach_soft_labels(preparation: Preparation) -> SoftLabelStore | None:
    """The stored soft labels a term reads, checked; ``None`` where none does.

    Raises:
        FileNotFoundError: Where there are none, with the command that makes them.
        ValueError: Where they belong to other data or to an earlier state of them, or a training case has none.
    """
    term = soft_label_term(preparation.terms)
    if term is None:
        return None
    student = preparation.student
    cases = PreprocessedCases(_preprocessed(student), student)
    command = soft_labels_command(student)
    try:
        store = _find_soft_labels(student, term)
    except FileNotFoundError as error:
        name = "" if term.store is None else f" --name {term.store}"
        raise FileNotFoundError(f"{error}. Make them: {command} --sam vit_b --checkpoint FILE{name}") from None
    store.check_data(cases.data)
    try:
        store.check_cases(cases, _training_cases(cases, preparation.fold))
    except ValueError as error:
        raise ValueError(f"{error}. Make it: {command} {store.arguments} --continue") from None
    return store


def soft_label_term(terms: Sequence[ActiveTerm]) -> ActiveSoftLabelTerm | None:
    """The one that reads stored soft labels, where there is one of a weight."""
    found = [term for term in terms if isinstance(term, ActiveSoftLabelTerm) and term.weight > 0]
    return found[0] if found else None


def _preprocessed(student: Experiment) -> Path:
    return Path(nnUNet_preprocessed.require()) / str(student.plans["dataset_name"])


def _find_soft_labels(student: Experiment, term: ActiveSoftLabelTerm) -> SoftLabelStore:
    identifier = PlansManager(student.plans).get_configuration(student.configuration).data_identifier
    return find_store(_preprocessed(student), identifier, term.store)


def soft_labels_command(student: Experiment) -> str:
    """The beginning of what a person has to type for soft labels or embeddings that are missing."""
    plans = student.plans
    return f"nnunet_kd soft-labels -d {plans['dataset_name']} -c {student.configuration} -p {plans['plans_name']}"


def _training_cases(cases: PreprocessedCases, fold: int | str) -> list[str]:
    """Of a fold, where nnU-Net has split the data set already; else all preprocessed cases."""
    splits = cases.folder / "splits_final.json"
    if fold != "all" and splits.is_file():
        folds = read_splits(splits)
        if int(fold) < len(folds):
            return list(folds[int(fold)]["train"])
    return cases.identifiers


def _check_patch(student: Experiment, teacher: EncoderStages) -> None:
    patch = PlansManager(student.plans).get_configuration(student.configuration).patch_size
    coarsest = teacher.strides[-1]
    if any(size % stride for size, stride in zip(patch, coarsest, strict=True)):
        raise ValueError(
            f"the student's patch {list(patch)} cannot be divided by the teacher's strides {list(coarsest)}"
        )


def _student_network(trainer: type[DistillationTrainer], student: Experiment) -> nn.Module:
    """The network the plans ask for, built without memory."""
    with torch.device("meta"):
        return build_network(trainer, student)
