"""The ``nnunet_kd`` block of a plans file, which holds an experiment's settings; nothing here touches a file.

A plans file may carry one block at its top level; every key has a default::

    "nnunet_kd": {
      "student":  {"source_plans": null, "reduction": 4, "min_features": 8},
      "teacher":  {"trainer": "nnUNetTrainer", "plans": null, "configuration": null, "folds": "same",
                   "checkpoint": "checkpoint_final.pth", "folder": null, "trust_checkpoint": false,
                   "precision": null},
      "training": {"num_epochs": null, "num_iterations_per_epoch": null, "num_val_iterations_per_epoch": null,
                   "initial_lr": null, "save_every": null, "seed": 1234, "ema_decay": null,
                   "optimizer": null, "initial_weights": null, "overwrite": false},
      "method":   {}
    }

Without ``student`` a trainer reduces by its own factor. ``teacher`` may be a list of such objects. ``method`` holds
keywords of the trainer's term; ``"add": [{"name": ...}]`` adds further terms, ``"terms": [{"name": ...}]`` replaces the
trainer's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

BLOCK = "nnunet_kd"
# Of the training settings, those that nnU-Net's trainers have as attributes.
SCHEDULE = {  # key -> nnU-Net's own
    "num_epochs": 1000,
    "num_iterations_per_epoch": 250,
    "num_val_iterations_per_epoch": 50,
    "initial_lr": 0.01,
    "save_every": 50,
}
FITTED_STARTS = ("reconstructed", "pruned")  # initial weights that need the teacher's outputs

Plans = dict[str, Any]
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class StudentSettings:
    """Where the student's widths came from.

    Attributes:
        source_plans: ``plans_name`` of the full-width plans, the teacher's by default.
        reduction: Every width is divided by this (DCD: 4).
        min_features: But no stage gets fewer channels than this.
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
    """Which trained nnU-Net teaches.

    Attributes:
        trainer: Name of the trainer class it was trained with.
        plans: Its ``plans_name``; ``None``: the student's source plans.
        configuration: ``None``: the student's.
        folds: ``"same"`` (the student's own fold: nothing leaks), ``"all"``, or a list of folds, which teach together.
        checkpoint: File name of the checkpoint.
        folder: Folder that holds ``plans.json`` and ``fold_*``, instead of the one nnU-Net would use.
        trust_checkpoint: Unpickle whatever the checkpoint holds, and build whatever network the plans beside it name.
            Runs code in them. Without it networks and layers are PyTorch's, nnU-Net's or this package's.
        precision: ``"bfloat16"``: the teacher's convolutions in that type while the student trains, faster on CPUs
            that have instructions for it; ``None``: as the student's, on a GPU nnU-Net's float16, on a CPU float32.
        leakage: Written by the trainer into the results' plans where the teacher has seen validation cases: student
            fold -> warning.
    """

    trainer: str = "nnUNetTrainer"
    plans: str | None = None
    configuration: str | None = None
    folds: str | list[int] = "same"
    checkpoint: str = "checkpoint_final.pth"
    folder: str | None = None
    trust_checkpoint: bool = False
    precision: str | None = None
    leakage: dict[str, str] | None = None

    def __post_init__(self) -> None:
        alone = self.folder is None or (self.plans is None and self.trainer == "nnUNetTrainer")
        require(alone, "teacher.folder", "given without trainer and plans, which it says itself", self.folder)
        listed = isinstance(self.folds, list) and self.folds and all(_is_integer(f) and f >= 0 for f in self.folds)
        require(self.folds in ("same", "all") or bool(listed), "teacher.folds", '"same", "all" or [0, 1]', self.folds)
        require(self.precision in (None, "bfloat16"), "teacher.precision", '"bfloat16" or null', self.precision)


@dataclass(frozen=True)
class TrainingSettings:
    """The schedule. ``None`` keeps what the trainer class says, which is nnU-Net's own unless it says otherwise.

    Of those from ``seed`` on, an explicit ``null`` also switches off what a trainer's recipe has instead.

    Attributes:
        save_every: Epochs between two saves that ``--c`` can go on from; ``None``: nnU-Net's 50, but at most a tenth of
            the training.
        seed: Seeds initial weights, data loading and augmentation, so that runs repeat and ``--c`` goes on exactly;
            ``None`` leaves nnU-Net's own unseeded loading.
        ema_decay: Keep an exponential moving average of the student's weights, and validate and save that.
        optimizer: ``"adamw"``, with a cosine from ``initial_lr`` to 1e-5; ``None``: nnU-Net's SGD and polynomial.
        initial_weights: ``"teacher"``: every r-th channel of the teacher's; ``"reconstructed"``: these, with every
            convolution fitted to the outputs of the teacher's; ``"pruned"``: the same, but with the channels from
            which the teacher's next layers lose least; ``None``: random ones.
        overwrite: Train again where a finished training lies, which is refused otherwise.
    """

    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    initial_lr: float | None = None
    save_every: int | None = None
    seed: int | None = 1234
    ema_decay: float | None = None
    optimizer: str | None = None
    initial_weights: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"training.{key}", "at least 1", value)
        require(self.initial_lr is None or self.initial_lr > 0, "training.initial_lr", "above 0", self.initial_lr)
        require(self.seed is None or 0 <= self.seed < 2**32, "training.seed", "from 0 to 2^32 - 1", self.seed)
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, "training.ema_decay", "between 0 and 1", decay)
        require(self.optimizer in (None, "adamw"), "training.optimizer", '"adamw" or null', self.optimizer)
        start = self.initial_weights
        starts = '"teacher", "reconstructed", "pruned" or null'
        require(start in (None, "teacher", *FITTED_STARTS), "training.initial_weights", starts, start)


@dataclass(frozen=True)
class Settings:
    """The ``nnunet_kd`` block, validated and with defaults. ``student`` is ``None`` where the plans carry none."""

    student: StudentSettings | None = None
    teachers: tuple[TeacherSettings, ...] = field(default_factory=lambda: (TeacherSettings(),))
    training: TrainingSettings = field(default_factory=TrainingSettings)
    method: dict[str, Any] = field(default_factory=dict)


def read_settings(plans: Mapping[str, Any]) -> Settings:
    """The block of a plans dictionary; all defaults where it has none.

    Raises:
        ValueError: Naming an unknown key and the nearest valid one, or a value of the wrong type or range.
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
        raise ValueError(f"{BLOCK}.teacher is an empty list")
    return Settings(
        student=read_section(StudentSettings, block["student"], "student") if "student" in block else None,
        teachers=(
            tuple(read_section(TeacherSettings, entry, f"teacher[{i}]") for i, entry in enumerate(teachers))
            if isinstance(teachers, list)
            else (read_section(TeacherSettings, teachers, "teacher"),)
        ),
        training=read_section(TrainingSettings, block.get("training", {}), "training"),
        method=dict(block.get("method", {})),
    )


def with_leakage(plans: Mapping[str, Any], warnings: Mapping[str, str]) -> Plans:
    """The plans with the warnings of student folds noted at their teacher, at the first one where there are several.

    Args:
        plans: Plans of a student; not changed.
        warnings: Fold -> warning. They replace what was noted before.
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
    """What results' plans say of teachers that have seen validation cases: student fold -> warning."""
    notes: dict[str, str] = {}
    for teacher in read_settings(plans).teachers:
        notes.update(teacher.leakage or {})
    return notes


def check_keys(given: Mapping[str, Any], valid: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Refuse keys that mean nothing.

    Raises:
        ValueError: Naming the first unknown key and the nearest valid one.
    """
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {_quoted(valid)}."
            raise ValueError(f"unknown key {key!r} in {where}: {hint}")


def read_section(kind: type[_Section], given: Mapping[str, Any], name: str) -> _Section:
    """A part of the block as a dataclass, whose annotations are the types the values must have.

    Raises:
        ValueError: Naming an unknown key and the nearest valid one, or a value of the wrong type or range.
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
    }
    return any(checks[name] for name in annotation.split(" | "))


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
    }
    return " or ".join(words[name] for name in annotation.split(" | "))


def require(holds: bool, key: str, expected: str, got: Any) -> None:
    """Refuse a value of the block.

    Raises:
        ValueError: Naming the key, unless it holds.
    """
    if not holds:
        raise ValueError(f"{BLOCK}.{key} must be {expected}, got {got!r}")


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
