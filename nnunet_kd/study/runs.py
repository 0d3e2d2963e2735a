"""What a study compares: its rows, and the trainings of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import check_keys

TEACHER = "teacher"  # its name beside those of the methods
PREFIX = "nnUNetTrainer"  # of the names of trainers

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MethodRow:
    """A row of the tables.

    Attributes:
        name: In the tables.
        trainer: Class name.
        suffix: Of the plans that hold its settings; empty where there are none.
        settings: Of the sections ``method`` and ``training`` of the plans' ``nnunet_kd`` block: what differs.
    """

    name: str
    trainer: str
    suffix: str = ""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: Its row in the tables.
        trainer: Class name.
        plans: ``plans_name``.
        fold: Of the cross-validation.
        seed: ``None``: the plans'.
        settings: See :class:`MethodRow`.
    """

    method: str
    trainer: str
    plans: str
    fold: int
    seed: int | None
    settings: Settings


# Rows of the papers' ablation tables: name -> keywords of the method's loss.
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
    """Trainers with or without their prefix, with the settings of the plans."""
    return [MethodRow(method.removeprefix(PREFIX) or PREFIX, trainer_of(method)) for method in methods]


def rows_of_ablation(name: str) -> list[MethodRow]:
    """One of :data:`ABLATIONS`.

    Raises:
        ValueError: For an unknown one.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
    method, rows = ABLATIONS[name]
    return [
        MethodRow(f"{method} {row}", trainer_of(method), f"_{name}-{row}", {"method": keywords})
        for row, keywords in rows.items()
    ]


def rows_of_file(path: Path) -> list[MethodRow]:
    """Rows listed in a file (JSON)::

        {"DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
         "DCD, averaged": {"trainer": "DCD", "training": {"ema_decay": 0.99}}}

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: For a file that does not look like that, naming the row.
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
            raise ValueError(f"{where}: a name needs a letter or a digit, plans are named after it")
        if "/" in name or "\\" in name or name == TEACHER:
            raise ValueError(f"{where}: a name has no slash, folders are named after it, and is not {TEACHER}")
        rows.append(
            MethodRow(name, trainer_of(entry["trainer"]), f"_{slug}" if any(settings.values()) else "", settings)
        )
    return rows


def trainer_of(method: str) -> str:
    """Class name of a trainer that is given with or without its prefix."""
    return f"{PREFIX}{method.removeprefix(PREFIX)}"


def folder_of(name: str) -> str:
    """The name of a row in names of folders."""
    return name.replace(" ", "_")


def list_runs(plans: str, rows: Sequence[MethodRow], folds: Sequence[int], seeds: Sequence[int | None]) -> list[Run]:
    """All trainings of a study, fold by fold, so that a stopped study has whole folds.

    Raises:
        ValueError: Where two rows have one name, or would have one folder or file of plans, or are the same.
    """
    for number, row in enumerate(rows):
        for other in rows[:number]:
            if row.name == other.name:
                raise ValueError(f"there are two rows {row.name}")
            if folder_of(row.name).lower() == folder_of(other.name).lower():  # disks may not tell capitals apart
                raise ValueError(f"the rows {other.name} and {row.name} would have one folder {folder_of(row.name)}")
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
