"""The ``nnunet_kd`` block of a plans file, which holds the settings of an experiment; this module touches no files.

A plans file can contain one block at its top level, in which every key has a default::

    "nnunet_kd": {
      "student":  {"source_plans": null, "reduction": 4, "min_features": 8},
      "teacher":  {"trainer": "nnUNetTrainer", "plans": null, "configuration": null, "folds": "same",
                   "checkpoint": "checkpoint_final.pth", "folder": null, "trust_checkpoint": false,
                   "precision": null, "channels": null, "label_map": null},
      "training": {"num_epochs": null, "num_iterations_per_epoch": null, "num_val_iterations_per_epoch": null,
                   "initial_lr": null, "save_every": null, "seed": 1234, "ema_decay": null,
                   "optimizer": null, "initial_weights": null, "unlabelled": "soft", "overwrite": false,
                   "early_stopping": null, "final_validation": null, "deep_supervision": true,
                   "one_pass_per_epoch": false, "lr_schedule": null, "plateau_patience": 10, "cosine_epochs": 50,
                   "augmentation": null},
      "method":   {}
    }

Without ``student``, a trainer reduces the widths by its own factor. ``teacher`` can also be a list of such objects.
``method`` holds keywords of the trainer's term; ``"add": [{"name": ...}]`` adds further terms, and
``"terms": [{"name": ...}]`` replaces the trainer's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

BLOCK = "nnunet_kd"
# The training settings that are attributes of nnU-Net's trainers, with nnU-Net's values.
SCHEDULE = {
    "num_epochs": 1000,
    "num_iterations_per_epoch": 250,
    "num_val_iterations_per_epoch": 50,
    "initial_lr": 0.01,
    "save_every": 50,
}
FITTED_STARTS = ("reconstructed", "pruned")  # the initial weights that are fitted to the teacher's outputs

Plans = dict[str, Any]
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class StudentSettings:
    """The origin of the student's widths.

    Attributes:
        source_plans: The ``plans_name`` of the full-width plans, by default the plans of the teacher.
        reduction: The factor by which every width was divided (4 in DCD).
        min_features: The smallest number of channels per stage.
    """

    source_plans: str | None = None
    reduction: float = 4
    min_features: int = 8

    def __post_init__(self) -> None:
        require(self.reduction >= 1, "student.reduction", "at least 1", self.reduction)
        require(self.reduction < math.inf, "student.reduction", "finite", self.reduction)
        require(self.min_features >= 1, "student.min_features", "at least 1", self.min_features)


@dataclass(frozen=True)
class TeacherSettings:
    """The trained nnU-Net that is used as the teacher.

    Attributes:
        trainer: The name of the trainer class that trained the teacher.
        plans: The ``plans_name`` of the teacher; ``None`` for the student's source plans.
        configuration: The configuration of the teacher; ``None`` for the student's.
        folds: ``"same"`` for the student's own fold, which leaks nothing, ``"all"``, or a list of folds whose mean
            teaches.
        checkpoint: The file name of the checkpoint.
        folder: A folder that contains ``plans.json`` and ``fold_*``, instead of the one in nnU-Net's results.
        trust_checkpoint: Whether to unpickle any content of the checkpoint and build any network that the plans beside
            it name, which runs code in them. Otherwise, networks and layers must come from PyTorch, nnU-Net or this
            package.
        precision: ``"bfloat16"`` to compute the teacher's convolutions in this type during the student's training,
            which is faster on CPUs with instructions for it; ``None`` for the student's precision, which is nnU-Net's
            float16 on a GPU and float32 on a CPU.
        channels: The number of the teacher's channel for each of the student's channels, in order; ``None`` matches
            channels by their names, or by their order if both have as many. Only for a teacher that does not run beside
            the student.
        label_map: The names of the teacher's labels or regions of which each label or region of the student consists;
            ``None`` matches names. Structures of the teacher that are not named become background. Only for a teacher
            that does not run beside the student.
        leakage: The warnings by student fold that the trainer writes into the plans of the results if the teacher has
            seen validation cases.
    """

    trainer: str = "nnUNetTrainer"
    plans: str | None = None
    configuration: str | None = None
    folds: str | list[int] = "same"
    checkpoint: str = "checkpoint_final.pth"
    folder: str | None = None
    trust_checkpoint: bool = False
    precision: str | None = None
    channels: list[int] | None = None
    label_map: dict[str, list[str]] | None = None
    leakage: dict[str, str] | None = None

    def __post_init__(self) -> None:
        alone = self.folder is None or (self.plans is None and self.trainer == "nnUNetTrainer")
        require(alone, "teacher.folder", "given without trainer and plans, which the folder defines", self.folder)
        listed = isinstance(self.folds, list) and self.folds and all(_is_integer(f) and f >= 0 for f in self.folds)
        require(self.folds in ("same", "all") or bool(listed), "teacher.folds", '"same", "all" or [0, 1]', self.folds)
        require(self.precision in (None, "bfloat16"), "teacher.precision", '"bfloat16" or null', self.precision)
        channels = self.channels
        numbered = channels is None or (channels != [] and all(one >= 0 for one in channels))
        require(numbered, "teacher.channels", "numbers of channels such as [0, 3]", channels)


@dataclass(frozen=True)
class TrainingSettings:
    """The training schedule; ``None`` keeps the value of the trainer class, which is nnU-Net's unless it overrides it.

    From ``seed`` on, an explicit ``null`` also switches off the value of a trainer's recipe.

    Attributes:
        num_epochs: The number of epochs.
        num_iterations_per_epoch: The number of training steps per epoch.
        num_val_iterations_per_epoch: The number of validation batches per epoch.
        initial_lr: The learning rate at the start.
        save_every: The number of epochs between two checkpoints from which ``--c`` can continue; ``None`` for nnU-Net's
            50, but at most a tenth of the training.
        seed: The seed of the initial weights, data loading and augmentation, which makes runs repeatable and lets
            ``--c`` continue exactly; ``None`` for nnU-Net's unseeded loading.
        ema_decay: The decay of an exponential moving average of the student's weights. If set, the average is what is
            validated and saved.
        optimizer: ``"adamw"`` with a cosine schedule from ``initial_lr`` to 1e-5; ``None`` for nnU-Net's SGD with a
            polynomial schedule.
        initial_weights: ``"teacher"`` for every r-th channel of the teacher; ``"reconstructed"`` for the same channels
            with every convolution fitted to the teacher's outputs; ``"pruned"`` for convolutions fitted likewise, but
            with the channels that the teacher's next layers need most; ``{"vmamba": FILE}`` for VM-UNet from the
            ImageNet weights of VMamba, as in its published code; ``None`` for random weights.
        unlabelled: ``"soft"`` if cases without a reference learn from stored soft labels alone; ``"hard"`` if the
            segmentation that the soft labels imply is their reference as well.
        overwrite: Whether to train again although the results folder holds a finished training, which is refused
            otherwise.
        early_stopping: The number of epochs without a new best value of nnU-Net's EMA pseudo Dice after which the
            training ends; ``None`` trains all epochs.
        final_validation: ``"best"`` if nnU-Net's validation after the training uses ``checkpoint_best.pth``; ``None``
            for the last epoch's weights.
        deep_supervision: Whether the student also learns from the logits of its lower scales, as nnU-Net's trainers
            do if their network has any; DSVM-UNet's eq. 5 and the other 2-D papers have none.
        one_pass_per_epoch: Whether an epoch has as many patches as there are training cases, rounded up to whole
            batches, and likewise in validation, unless its iterations are set. nnU-Net draws the cases at random.
        lr_schedule: ``"plateau"`` to divide the learning rate by ten when nnU-Net's validation loss no longer falls
            (ReduceLROnPlateau); ``"cosine"`` to lower and raise it in turn; ``None`` for the optimizer's own schedule.
        plateau_patience: The number of epochs without a lower validation loss that ``"plateau"`` tolerates.
        cosine_epochs: The number of epochs in which ``"cosine"`` lowers the learning rate to 1e-5, or raises it.
        augmentation: ``"flips_and_brightness"`` or ``"flips_and_rotations"`` for these of nnU-Net's augmentation alone;
            ``None`` for all of it.
    """

    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    initial_lr: float | None = None
    save_every: int | None = None
    seed: int | None = 1234
    ema_decay: float | None = None
    optimizer: str | None = None
    initial_weights: str | dict[str, str] | None = None
    unlabelled: str = "soft"
    overwrite: bool = False
    early_stopping: int | None = None
    final_validation: str | None = None
    deep_supervision: bool = True
    one_pass_per_epoch: bool = False
    lr_schedule: str | None = None
    plateau_patience: int = 10
    cosine_epochs: int = 50
    augmentation: str | None = None

    def __post_init__(self) -> None:
        counts = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every")
        for key in (*counts, "early_stopping"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"training.{key}", "at least 1", value)
        require(self.initial_lr is None or self.initial_lr > 0, "training.initial_lr", "above 0", self.initial_lr)
        require(self.seed is None or 0 <= self.seed < 2**32, "training.seed", "from 0 to 2^32 - 1", self.seed)
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, "training.ema_decay", "between 0 and 1", decay)
        require(self.optimizer in (None, "adamw"), "training.optimizer", '"adamw" or null', self.optimizer)
        start = self.initial_weights
        starts = '"teacher", "reconstructed", "pruned", {"vmamba": FILE} or null'
        known = [*start] == ["vmamba"] if isinstance(start, dict) else start in (None, "teacher", *FITTED_STARTS)
        require(known, "training.initial_weights", starts, start)
        taught = self.unlabelled
        require(taught in ("soft", "hard"), "training.unlabelled", '"soft" or "hard"', taught)
        validated = self.final_validation
        require(validated in (None, "best"), "training.final_validation", '"best" or null', validated)
        schedule, patience, augmentation = self.lr_schedule, self.plateau_patience, self.augmentation
        schedules, augmentations = ("plateau", "cosine"), ("flips_and_brightness", "flips_and_rotations")
        require(schedule in (None, *schedules), "training.lr_schedule", f"null or one of {schedules}", schedule)
        require(patience >= 0, "training.plateau_patience", "at least 0", patience)
        require(self.cosine_epochs >= 1, "training.cosine_epochs", "at least 1", self.cosine_epochs)
        named = f"null or one of {augmentations}"
        require(augmentation in (None, *augmentations), "training.augmentation", named, augmentation)

    @property
    def epochs(self) -> int:
        """The number of epochs, which is nnU-Net's if it is not set."""
        return self.num_epochs or int(SCHEDULE["num_epochs"])


@dataclass(frozen=True)
class Settings:
    """The ``nnunet_kd`` block, validated and filled with defaults; ``student`` is ``None`` if the plans have none."""

    student: StudentSettings | None = None
    teachers: tuple[TeacherSettings, ...] = field(default_factory=lambda: (TeacherSettings(),))
    training: TrainingSettings = field(default_factory=TrainingSettings)
    method: dict[str, Any] = field(default_factory=dict)


def read_settings(plans: Mapping[str, Any]) -> Settings:
    """Read the ``nnunet_kd`` block of plans, or return the defaults if the plans have none.

    Raises:
        ValueError: If a key is unknown, with the closest valid key, or if a value has the wrong type or range.
    """
    block = plans.get(BLOCK, {})
    sections = {"student": StudentSettings, "teacher": TeacherSettings, "training": TrainingSettings, "method": dict}
    if not isinstance(block, Mapping):
        raise ValueError(f"{BLOCK} in the plans must be an object with {_quoted(sections)}, got {block!r}")
    check_keys(block, sections, BLOCK)
    for name, section in block.items():
        listed = name == "teacher" and isinstance(section, list)
        for entry in section if listed else [section]:
            if not isinstance(entry, Mapping):
                raise ValueError(f"{BLOCK}.{name} must be an object, got {entry!r}")
    teachers = block.get("teacher", {})
    if isinstance(teachers, list) and not teachers:
        raise ValueError(f"{BLOCK}.teacher is an empty list: name at least one teacher, or remove the entry")
    training = read_section(TrainingSettings, block.get("training", {}), "training")
    if training.one_pass_per_epoch and training.num_iterations_per_epoch is not None:
        raise ValueError(
            f"{BLOCK}.training has both one_pass_per_epoch and num_iterations_per_epoch: remove one of them"
        )
    return Settings(
        student=read_section(StudentSettings, block["student"], "student") if "student" in block else None,
        teachers=(
            tuple(read_section(TeacherSettings, entry, f"teacher[{i}]") for i, entry in enumerate(teachers))
            if isinstance(teachers, list)
            else (read_section(TeacherSettings, teachers, "teacher"),)
        ),
        training=training,
        method=dict(block.get("method", {})),
    )


class TrainerDefaults(Protocol):
    """The protocol of a trainer class whose attributes complete the training settings.

    Attributes:
        recipe: Training settings that belong to the trainer's terms; they do not apply if the plans list other terms.
        starts_from_named_teacher: Whether the recipe's initial weights need a teacher that the plans name.
    """

    recipe: Mapping[str, Any]
    starts_from_named_teacher: bool


def settings_of_training(plans: Mapping[str, Any], trainer: TrainerDefaults) -> Settings:
    """Read the ``nnunet_kd`` block, and complete its training settings with those of a trainer class.

    A class attribute named like a setting overrides the recipe, and the block overrides both. ``null`` in the schedule
    counts as not set.

    Raises:
        ValueError: If the block is not valid.
    """
    settings = read_settings(plans)
    block = plans.get(BLOCK, {}).get("training", {})
    given = {key for key, value in block.items() if value is not None or key not in SCHEDULE}
    recipe = {} if "terms" in settings.method else dict(trainer.recipe)
    if trainer.starts_from_named_teacher and not names_teacher(plans):
        recipe.pop("initial_weights", None)
    names = [entry.name for entry in fields(TrainingSettings) if entry.name not in given]
    own = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    from_recipe = {name: recipe[name] for name in names if name in recipe}
    return replace(settings, training=replace(settings.training, **own, **from_recipe))


def names_teacher(plans: Mapping[str, Any]) -> bool:
    """Return whether plans name a teacher; a record of leakage alone does not."""
    teacher = plans.get(BLOCK, {}).get("teacher", {})
    return isinstance(teacher, list) or bool({*teacher} - {"leakage"})


def with_leakage(plans: Mapping[str, Any], warnings: Mapping[str, str]) -> Plans:
    """Return plans that record the leakage warnings at their teacher, or at the first teacher if there are several.

    Args:
        plans: The student's plans, which are not modified.
        warnings: The warnings by student fold, which replace those recorded before.
    """
    noted = deepcopy(dict(plans))
    teachers = noted.setdefault(BLOCK, {}).setdefault("teacher", {})
    first = teachers[0] if isinstance(teachers, list) else teachers
    first.pop("leakage", None)
    if warnings:
        first["leakage"] = dict(warnings)
    elif not teachers:
        del noted[BLOCK]["teacher"]
    return noted


def recorded_leakage(plans: Mapping[str, Any]) -> dict[str, str]:
    """Return the leakage warnings recorded in the plans of a results folder, by student fold."""
    notes: dict[str, str] = {}
    for teacher in read_settings(plans).teachers:
        notes.update(teacher.leakage or {})
    return notes


def check_keys(given: Mapping[str, Any], valid: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Refuse unknown keys.

    Raises:
        ValueError: If a key is unknown; the message names the first one and the closest valid key.
    """
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(str(key), list(valid), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {_quoted(valid)}."
            raise ValueError(f"unknown key {key!r} in {where}: {hint}")


def read_section(kind: type[_Section], given: Mapping[str, Any], name: str) -> _Section:
    """Read a section of the block into a dataclass, whose annotations are the types that the values must have.

    Raises:
        ValueError: If a key is unknown, with the closest valid key, or if a value has the wrong type or range.
    """
    types = {entry.name: str(entry.type) for entry in fields(kind)}  # type: ignore[arg-type]
    check_keys(given, types, f"{BLOCK}.{name}")
    for key, value in given.items():
        if not _fits(value, types[key]):
            raise ValueError(f"{BLOCK}.{name}.{key} must be {_spoken(types[key])}, got {value!r}")
    return kind(**given)


def _fits(value: Any, annotation: str) -> bool:
    checks = {
        "None": value is None,
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": _is_integer(value),
        "float": _is_integer(value) or (isinstance(value, float) and abs(value) < float("inf")),
        "list[int]": isinstance(value, list) and all(_is_integer(entry) for entry in value),
        "dict[str, str]": isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()),
        "dict[str, list[str]]": isinstance(value, dict) and all(_is_names(entry) for entry in value.values()),
    }
    return any(checks[name] for name in annotation.split(" | "))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _spoken(annotation: str) -> str:
    words = {
        "None": "null",
        "str": "text",
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "list[int]": "a list of whole numbers",
        "dict[str, str]": "an object of texts",
        "dict[str, list[str]]": 'an object of lists of names such as {"tumour": ["core", "oedema"]}',
    }
    return " or ".join(words[name] for name in annotation.split(" | "))


def require(holds: bool, key: str, expected: str, got: Any) -> None:
    """Refuse a value of the block unless a condition holds.

    Raises:
        ValueError: If it does not hold; the message names the key.
    """
    if not holds:
        raise ValueError(f"{BLOCK}.{key} must be {expected}, got {got!r}")


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
