"""The rows that a study compares, and the trainings of each row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.networks_of_plans import NETWORKS
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import check_keys

TEACHER = "teacher"  # the teacher's name among the methods
PREFIX = "nnUNetTrainer"  # of every trainer's name

Settings = Mapping[str, Mapping[str, Any]]
_SECTIONS = ("method", "training")  # of the nnunet_kd block, which a row can change
_NETWORK = ("plans", "network", "arch_kwargs")


@dataclass(frozen=True)
class OtherNetwork:
    """How the network of a row differs from that of the study's plans.

    Attributes:
        plans: The name of the plans to take in the place of the study's.
        name: A network of :data:`~nnunet_kd.nnunet.networks_of_plans.NETWORKS` to take in the place of the plans'.
        arch_kwargs: Keywords that replace those of the network.
    """

    plans: str | None = None
    name: str | None = None
    arch_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether the row may train another network than the other rows."""
        return self != OtherNetwork()

    def described(self) -> dict[str, Any]:
        """Return what a file of rows says of the network."""
        said = {"plans": self.plans, "network": self.name, "arch_kwargs": dict(self.arch_kwargs)}
        return {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class MethodRow:
    """A method in the tables of a study.

    Attributes:
        name: The name of the row in the tables.
        trainer: The class name of the trainer.
        suffix: The suffix of the plans that hold the settings; empty without settings.
        settings: The values that differ from ``method`` and ``training`` in the plans' ``nnunet_kd`` block.
        network: How its network differs.
    """

    name: str
    trainer: str
    suffix: str = ""
    settings: Settings = field(default_factory=dict)
    network: OtherNetwork = field(default_factory=OtherNetwork)


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
        network: How its network differs.
    """

    method: str
    trainer: str
    plans: str
    fold: int
    seed: int | None
    settings: Settings
    network: OtherNetwork = field(default_factory=OtherNetwork)


def rows_of_methods(methods: Sequence[str]) -> list[MethodRow]:
    """Return rows for trainers, given with or without their prefix, with the settings of the plans."""
    return [MethodRow(method.removeprefix(PREFIX) or PREFIX, trainer_of(method)) for method in methods]


def rows_of_file(path: Path) -> list[MethodRow]:
    """Read rows from a JSON file such as this::

        {"DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
         "DCD, averaged": {"trainer": "DCD", "training": {"ema_decay": 0.99}},
         "DRA-UNet": {"trainer": "NoKD", "network": "dra_unet", "arch_kwargs": {"attention": false}},
         "wide": {"trainer": "NoKD", "plans": "nnUNetPlans_r2"}}

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not have this form; the message names the row.
    """
    rows: list[MethodRow] = []
    for name, entry in read_json(path).items():
        where = f"{path}: row {name!r}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("trainer"), str):
            raise ValueError(f'{where} must be an object with a trainer, like {{"trainer": "DCD"}}')
        check_keys(entry, ("trainer", *_SECTIONS, *_NETWORK), where)
        settings = {key: entry[key] for key in _SECTIONS if key in entry}
        network = _network_of(entry, where)
        for key, value in settings.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {key} must be an object, got {value!r}")
        if not slug_of(name) or not name.isprintable():
            raise ValueError(f"{where}: a name needs a letter or a digit, because plans are named after it")
        if "/" in name or "\\" in name or name == TEACHER:
            raise ValueError(
                f"{where}: a name cannot contain a slash, because folders are named after it, or be {TEACHER}"
            )
        changed = any(settings.values()) or replace(network, plans=None).differs
        suffix = f"_{slug_of(name)}" if changed else ""
        rows.append(MethodRow(name, trainer_of(entry["trainer"]), suffix, settings, network))
    return rows


def _network_of(entry: Mapping[str, Any], where: str) -> OtherNetwork:
    """Read how the network of a row differs."""
    for key in ("plans", "network"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{where}: {key} must be a name, got {entry[key]!r}")
    arch_kwargs = entry.get("arch_kwargs", {})
    if not isinstance(arch_kwargs, Mapping):
        raise ValueError(f"{where}: arch_kwargs must be an object, got {arch_kwargs!r}")
    if "network" in entry:
        check_keys({entry["network"]: None}, NETWORKS, f"the networks of {where}")
    return OtherNetwork(entry.get("plans"), entry.get("network"), arch_kwargs)


def slug_of(name: str) -> str:
    """Return the name of a row as part of the name of plans."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


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
            same = (row.suffix, row.network.plans) == (other.suffix, other.network.plans)
            if same and (row.suffix or row.trainer == other.trainer):
                named = f"{row.network.plans or plans}{row.suffix}"
                raise ValueError(f"the rows {other.name} and {row.name} would have the same plans {named}")
    return [
        Run(
            row.name,
            row.trainer,
            (row.network.plans or plans) + row.suffix + ("" if seed is None else f"_seed{seed}"),
            fold,
            seed,
            row.settings,
            row.network,
        )
        for fold in folds
        for seed in seeds
        for row in rows
    ]
