"""The sources a student learns from in addition to its data: teachers, initial weights, stored soft labels."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.terms import SoftLabelTerm
from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment, build_network
from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.nnunet.settings import BLOCK, FITTED_STARTS, TeacherSettings, names_teacher
from nnunet_kd.pruning.heads import MappedHeads
from nnunet_kd.pruning.selection import selected_weights
from nnunet_kd.teachers.adaptation import Adaptation, differing_axes, take_channels
from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.find import TeacherFiles, find_teachers
from nnunet_kd.teachers.leakage import teacher_folds
from nnunet_kd.teachers.patches import check_patch
from nnunet_kd.teachers.soft_labels import SoftLabelStore, find_store
from nnunet_kd.teachers.teacher import Teacher, load_teacher
from nnunet_kd.training.kind import TrainerKind
from nnunet_kd.training.leakage import soft_label_leakage, teacher_leakage
from nnunet_kd.training.preparation import Preparation
from nnunet_kd.training.vmamba import VMambaStart


class Sources:
    """Find and check the sources of one training, each of them once.

    Args:
        trainer: The trainer class.
        preparation: The student's preparation.

    Attributes:
        vmamba: VMamba's weights, from which a VM-UNet starts; ``None`` before :meth:`attach` or if it does not.
        start: The student's initial weights; ``None`` before :meth:`attach` or if none come from a teacher.
        soft_labels: The stored soft labels; ``None`` before :meth:`attach` or if no term reads any.
        parameters: The number of parameters of every teacher, by its checkpoint.
    """

    def __init__(self, trainer: TrainerKind, preparation: Preparation) -> None:
        self._trainer = trainer
        self._preparation = preparation
        self._attached = False
        self._files: list[TeacherFiles] = []
        self.parameters: dict[Path, int] = {}
        self.start: Start | None = None
        self.vmamba: VMambaStart | None = None
        self.soft_labels: SoftLabelStore | None = None

    def attach(self, distiller: Distiller, resumes: bool) -> None:
        """Find the sources of this training, unless they have been found before.

        Args:
            distiller: The distiller that receives the teacher.
            resumes: Whether the training resumes from a checkpoint and so needs no initial weights.

        Raises:
            FileNotFoundError: If a source is missing.
            ValueError: If it cannot be read or does not fit.
            NotImplementedError: For networks or teachers that a term cannot distil.
        """
        if self._attached:
            return
        preparation = self._preparation
        self.soft_labels = attach_soft_labels(self._trainer, preparation)
        if preparation.needs_teacher:
            attached = attach_teacher(self._trainer, preparation)
            distiller.attach(attached.teacher, attached.stages)
            self._files += attached.files
            self.parameters |= attached.parameters
        if preparation.starts_from_teacher and not resumes:
            self.start = start_from_teacher(self._trainer, preparation)
            self._files += self.start.files
            self.parameters |= self.start.parameters
        if preparation.vmamba is not None and not resumes:
            self.vmamba = VMambaStart(preparation.vmamba, _student_network(self._trainer, preparation.student))
        self._attached = True

    def load_vmamba(self, student: nn.Module, log: Callable[[str], None]) -> None:
        """Load VMamba's weights into the student, if it starts from them, and log what starts at random."""
        if self.vmamba is not None:
            log(self.vmamba.load(student))

    @property
    def teachers(self) -> list[TeacherFiles]:
        """The files of every teacher, each once."""
        return list({one.checkpoint: one for one in self._files}.values())

    def leakage(self, validation: Collection[str] | None = None) -> list[str]:
        """Describe which of the student's validation cases these sources have seen.

        Args:
            validation: The student's validation cases; ``None`` for those known when the sources were found.
        """
        preparation, labels = self._preparation, self.soft_labels
        taught = teacher_leakage(preparation, self._files, validation) if self._files else None
        stored = None if labels is None else soft_label_leakage(preparation, labels, validation)
        return [note for note in (taught, stored) if note is not None]


@dataclass(frozen=True)
class AttachedTeacher:
    """The teacher of one training, loaded and checked.

    Attributes:
        teacher: The frozen network, or an ensemble of several.
        stages: Pairs (student stage, teacher stage) on the same grid; empty if no term reads features.
        leakage: The leakage known when the teacher was found; see :mod:`nnunet_kd.training.leakage`.
        files: The files of every teacher.
        parameters: The number of parameters of every teacher, by its checkpoint.
    """

    teacher: Teacher | TeacherEnsemble
    stages: list[tuple[int, int]]
    leakage: str | None
    files: list[TeacherFiles] = field(repr=False)
    parameters: dict[Path, int] = field(repr=False)


def attach_teacher(trainer: TrainerKind, preparation: Preparation) -> AttachedTeacher:
    """Find, check and load the teacher.

    Raises:
        FileNotFoundError: If the teacher is missing.
        ValueError: If it cannot be read or does not fit.
        NotImplementedError: For networks or teachers that a term cannot distil.
    """
    student = preparation.student
    distiller = Distiller.for_student(preparation.terms, student)
    files = find_teachers(preparation.settings.teachers, student, preparation.fold)
    features = distiller.reads_teacher_encoder
    tuned = [term.name for term in preparation.terms if term.tuning_name is not None]
    if tuned and len(files) > 1:
        raise NotImplementedError(
            f"{tuned[0]} tunes prompts on one teacher, but the plans name {len(files)}: keep one in {BLOCK}.teacher, "
            "or use another term"
        )
    own_stages = encoder_stages(_student_network(trainer, student)) if features else None

    teachers = [load_teacher(one, features, distiller.reads_teacher_logits) for one in files]
    teacher = teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers, distiller.labels.regions)
    pairs: list[tuple[int, int]] = []
    if own_stages is not None and teacher.stages is not None:
        pairs = distiller.check(own_stages, teacher.stages)
    for one, its in zip(teachers, files, strict=True):
        check_patch(one, its.experiment, student.patch_size)
    counts = {one.checkpoint: loaded.parameter_count for one, loaded in zip(files, teachers, strict=True)}
    return AttachedTeacher(teacher, pairs, teacher_leakage(preparation, files), files, counts)


@dataclass
class Start:
    """Initial weights of a student.

    Attributes:
        weights: The weights themselves, before any fit to the teacher's outputs.
        leakage: The leakage known when the teacher was found.
        files: The files of the teacher.
        parameters: The teacher's number of parameters, by its checkpoint.
        teacher: The network to whose outputs the weights are to be fitted; ``None`` if they are used as they are.
        adaptation: The differences between the teacher's inputs and outputs and the student's; ``None`` without any.
        mapped: How the student's outputs follow from the teacher's; ``None`` if they have the same classes.
    """

    weights: dict[str, Tensor] = field(repr=False)  # nnU-Net writes the trainer's attributes into debug.json
    leakage: str | None
    files: list[TeacherFiles] = field(repr=False)
    parameters: dict[Path, int] = field(repr=False)
    teacher: nn.Module | None = field(default=None, repr=False)
    adaptation: Adaptation | None = field(default=None, repr=False)
    mapped: MappedHeads | None = field(default=None, repr=False)

    def take_teacher(self) -> nn.Module | None:
        """Return the teacher and drop the reference to it, so that its memory can be freed."""
        teacher, self.teacher = self.teacher, None
        return teacher


def start_from_teacher(trainer: TrainerKind, preparation: Preparation) -> Start:
    """Take the student's initial weights from its teacher.

    A start that is fitted allows a teacher with other channels, labels, spacing or intensities.

    Raises:
        FileNotFoundError: If the teacher is missing.
        ValueError: If the teacher cannot be read, does not fit or has other layers, or if there are several.
    """
    files = teacher_files(preparation)
    if len(files) > 1:
        together = ', and "method": {"terms": [{"name": "logits"}]} to let them teach together'
        raise ValueError(
            f"{BLOCK}.training.initial_weights: a student starts from one teacher, but the plans name {len(files)}: "
            f'keep one of them in {BLOCK}.teacher, or set "training": {{"initial_weights": null}}'
            f"{'' if trainer.terms is None else together}"
        )
    fitted = preparation.settings.training.initial_weights in FITTED_STARTS
    loaded = load_teacher(files[0], features=False, logits=fitted)
    teacher = loaded.network
    adaptation, mapped = files[0].adaptation, None
    try:
        if adaptation is not None:
            mapped = _adapted(teacher, adaptation, trainer, preparation.student)
        weights = selected_weights(teacher, _student_network(trainer, preparation.student), mapped)
    except ValueError as error:
        raise ValueError(f"{BLOCK}.training.initial_weights: {error}; set it to null for random weights") from None
    leaks = teacher_leakage(preparation, files)
    return Start(
        weights,
        leaks,
        files,
        {files[0].checkpoint: loaded.parameter_count},
        teacher if fitted else None,
        adaptation,
        mapped,
    )


def teacher_files(preparation: Preparation) -> list[TeacherFiles]:
    """Find the teachers, which must have the student's inputs and outputs unless they only give it fitted weights.

    Raises:
        FileNotFoundError: If a teacher is missing.
        ValueError: If one cannot be read or does not fit.
    """
    fitted = preparation.settings.training.initial_weights in FITTED_STARTS
    beside = preparation.needs_teacher or not fitted
    return find_teachers(preparation.settings.teachers, preparation.student, preparation.fold, beside=beside)


def _adapted(
    teacher: nn.Module, adaptation: Adaptation, trainer: TrainerKind, student: Experiment
) -> MappedHeads | None:
    """Give a teacher's network the student's channels, and return how the student's outputs follow from its own.

    Raises:
        ValueError: If a layer that reads the images is not a convolution.
    """
    own = _shapes(trainer, student)
    if not adaptation.channels.is_identity:
        inputs = differing_axes(own, _shapes(trainer, student, more_channels=1))
        take_channels(teacher, inputs, adaptation.channels.channels)
    if adaptation.labels.is_identity:
        return None
    outputs = differing_axes(own, _shapes(trainer, student, more_heads=1))
    layers = frozenset(name.rpartition(".")[0] for name in outputs)
    return MappedHeads(layers, adaptation.logits, adaptation.mixing)


def _shapes(trainer: TrainerKind, student: Experiment, **more: int) -> dict[str, torch.Size]:
    """Return the shapes of the weights of the student's network, with more channels or more heads."""
    with torch.device("meta"):
        network = build_network(trainer, student, **more)
    return {name: weight.shape for name, weight in network.state_dict().items()}


def attach_soft_labels(trainer: TrainerKind, preparation: Preparation) -> SoftLabelStore | None:
    """Find and check the stored soft labels that a term reads; return ``None`` if no term reads any.

    Raises:
        FileNotFoundError: If there are none; the message has the command that makes them.
        ValueError: If they were made for other or since changed data, or a training case has none.
    """
    term = preparation.soft_label_term
    if term is None:
        return None
    student = preparation.student
    cases = PreprocessedCases(_preprocessed(student), student)
    command = soft_labels_command(student)
    try:
        store = find_soft_labels(student, term)
    except FileNotFoundError as error:
        name = "" if term.store is None else f" --name {term.store}"
        how, source = _missing_source(trainer, preparation)
        raise FileNotFoundError(f"{error}. Make them{how}: {command} {source}{name}") from None
    store.check_data(cases.data)
    try:
        store.check_cases(cases, _training_cases(cases, preparation.fold))
    except ValueError as error:
        raise ValueError(f"{error}. Make it: {command} {store.arguments} --continue") from None
    return store


def _missing_source(trainer: TrainerKind, preparation: Preparation) -> tuple[str, str]:
    """Return the source of missing soft labels: what a person must supply, and the arguments that name it."""
    if not names_teacher(preparation.student.plans):
        if trainer.starts_from_named_teacher:
            return " with the model that is to teach, a zip file or a results folder", "--model MODEL"
        return "", "--sam vit_b --checkpoint FILE"
    settings = preparation.settings.teachers[0]
    if settings.folder is None:
        return "", "--teacher"
    words = ["--model", settings.folder, "-f", *map(str, teacher_folds(settings, preparation.fold))]
    words += [] if settings.configuration is None else ["--model-config", settings.configuration]
    words += [] if settings.checkpoint == TeacherSettings.checkpoint else ["-chk", settings.checkpoint]
    words += [] if settings.channels is None else ["--channels", *map(str, settings.channels)]
    words += [] if settings.label_map is None else ["--label-map", "FILE"]
    words += ["--trust"] if settings.trust_checkpoint else []
    how = "" if settings.label_map is None else f", with {BLOCK}.teacher.label_map of the plans in FILE"
    return how, shlex.join(words)


def _preprocessed(student: Experiment) -> Path:
    return Path(nnUNet_preprocessed.require()) / str(student.plans["dataset_name"])


def find_soft_labels(student: Experiment, term: SoftLabelTerm) -> SoftLabelStore:
    """Find the store of soft labels that a term reads.

    Raises:
        FileNotFoundError: If there is none.
    """
    identifier = PlansManager(student.plans).get_configuration(student.configuration).data_identifier
    return find_store(_preprocessed(student), identifier, term.store)


def soft_labels_command(student: Experiment) -> str:
    """Return the beginning of the command that makes missing soft labels or embeddings."""
    plans = student.plans
    return f"nnunet_kd soft-labels -d {plans['dataset_name']} -c {student.configuration} -p {plans['plans_name']}"


def _training_cases(cases: PreprocessedCases, fold: int | str) -> list[str]:
    """Return the training cases of a fold, or all preprocessed cases if nnU-Net has not made the folds yet."""
    splits = cases.folder / "splits_final.json"
    if fold != "all" and splits.is_file():
        folds = read_splits(splits)
        if int(fold) < len(folds):
            return list(folds[int(fold)]["train"])
    return cases.identifiers


def _student_network(trainer: TrainerKind, student: Experiment) -> nn.Module:
    """Build the network of the plans on the meta device, which takes no memory."""
    with torch.device("meta"):
        return build_network(trainer, student)
