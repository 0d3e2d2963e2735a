"""The rows that a study compares, and the trainings of each row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import check_keys

TEACHER = "teacher"  # the teacher's name among the methods
PREFIX = "nnUNetTrainer"  # of every trainer's name

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MethodRow:
    """A method in the tables of a study.

    Attributes:
        name: The name of the row in the tables.
        trainer: The class name of the trainer.
        suffix: The suffix of the plans that hold the settings; empty without settings.
        settings: The values that differ from ``method`` and ``training`` in the plans' ``nnunet_kd`` block.
    """

    name: str
    trainer: str
    suffix: str = ""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        method: The name of its row in the tables.
        trainer: The class name of the trainer.
        plans: The name of the plans.
        fold: The fold of the cross-validation.
        seed: The seed; ``None`` for that of the plans.
        settings: The settings of the row, see :class:`MethodRow`.
    """

    method: str
    trainer: str
    plans: str
    fold: int
    seed: int | None
    settings: Settings


# The rows of the papers' ablation tables: name -> method, and for each row the keywords of its loss.
ABLATIONS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "dcd": (
        "DCD",
        {
            "lll": {"bands": "lll"},
            "hhh": {"bands": "hhh"},
            "detail": {"bands": "detail"},
            "all": {"bands": "all"},
            "without-idwt": {"reconstruct": False},
            "energy": {"level_weighting": "energy"},
        },
    ),
    "dual_self": ("DualSelfKD", {"projection": {"beta": 0}, "progressive": {"alpha": 0}}),
}


def rows_of_methods(methods: Sequence[str]) -> list[MethodRow]:
    """Return rows for trainers, given with or without their prefix, with the settings of the plans."""
    return [MethodRow(method.removeprefix(PREFIX) or PREFIX, trainer_of(method)) for method in methods]


def rows_of_ablation(name: str) -> list[MethodRow]:
    """Return the rows of an ablation study in :data:`ABLATIONS`.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
    method, rows = ABLATIONS[name]
    return [
        MethodRow(f"{method} {row}", trainer_of(method), f"_{name}-{row}", {"method": keywords})
        for row, keywords in rows.items()
    ]


def rows_of_file(path: Path) -> list[MethodRow]:
    """Read rows from a JSON file such as this::

        {"DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
         "DCD, averaged": {"trainer": "DCD", "training": {"ema_decay": 0.99}}}

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not have this form; the message names the row.
    """
    rows: list[MethodRow] = []
    for name, entry in read_json(path).items():
        where = f"{path}: row {name!r}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("trainer"), str):
            raise ValueError(f'{where} must be an object with a trainer, like {{"trainer": "DCD"}}')
        check_keys(entry, ("trainer", "method", "training"), where)
        settings = {key: value for key, value in entry.items() if key != "trainer"}
        for key, value in settings.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {key} must be an object, got {value!r}")
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        if not slug or not name.isprintable():
            raise ValueError(f"{where}: a name needs a letter or a digit, because plans are named after it")
        if "/" in name or "\\" in name or name == TEACHER:
            raise ValueError(
                f"{where}: a name cannot contain a slash, because folders are named after it, or be {TEACHER}"
            )
        rows.append(
            MethodRow(name, trainer_of(entry["trainer"]), f"_{slug}" if any(settings.values()) else "", settings)
        )
    return rows


def trainer_of(method: str) -> str:
    """Return the class name of a trainer that is given with or without its prefix."""
    return f"{PREFIX}{method.removeprefix(PREFIX)}"


def folder_of(name: str) -> str:
    """Return the name of a row as part of a folder name."""
    return name.replace(" ", "_")


def list_runs(plans: str, rows: Sequence[MethodRow], folds: Sequence[int], seeds: Sequence[int | None]) -> list[Run]:
    """List all trainings of a study, fold by fold, so that a stopped study has complete folds.

    Raises:
        ValueError: If two rows are the same, or have the same name, folder or plans.
    """
    for number, row in enumerate(rows):
        for other in rows[:number]:
            if row.name == other.name:
                raise ValueError(f"two rows are called {row.name}")
            if folder_of(row.name).lower() == folder_of(other.name).lower():  # some file systems ignore case
                raise ValueError(
                    f"the rows {other.name} and {row.name} would have the same folder {folder_of(row.name)}"
                )
            if row.suffix == other.suffix and (row.suffix or row.trainer == other.trainer):
                raise ValueError(f"the rows {other.name} and {row.name} would have the same plans {plans}{row.suffix}")
    return [
        Run(
            row.name,
            row.trainer,
            plans + row.suffix + ("" if seed is None else f"_seed{seed}"),
            fold,
            seed,
            row.settings,
        )
        for fold in folds
        for seed in seeds
        for row in rows
    ]
