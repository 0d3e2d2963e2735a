"""The results folder of a training: may it be written, is it this student's, does nobody else train in it now."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import network_in_words
from nnunet_kd.nnunet.reading import read_plans, read_splits
from nnunet_kd.storage.processes import BusyError, FileLock

CHECKPOINTS = tuple(f"checkpoint_{name}.pth" for name in ("latest", "best", "final"))
LOCK = "training.lock"
_EARLIER = "earlier_"


def results_of(trainer: str, student: Experiment) -> Path | None:
    """Where nnU-Net puts all folds of a training; ``None`` where ``nnUNet_results`` is not set."""
    if not nnUNet_results.is_set():
        return None
    plans = student.plans
    name = f"{trainer}__{plans['plans_name']}__{student.configuration}"
    return Path(nnUNet_results.require()) / str(plans["dataset_name"]) / name


def has_checkpoints(folder: Path) -> bool:
    """Return whether a training has saved anything in the folder of a fold."""
    return any((folder / name).is_file() for name in CHECKPOINTS)


def check_results(folder: Path, student: Experiment) -> None:
    """Refuse a folder that cannot be written, or that has checkpoints of another student.

    nnU-Net keeps one ``plans.json`` for all folds. If it were overwritten for another network, the folds that are
    trained could no longer predict.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If another student was trained there.
    """
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(f"cannot write results into {folder}: {there} is read-only, or not yours")
    plans = folder / "plans.json"
    if not plans.is_file() or not any(path for name in CHECKPOINTS for path in folder.glob(f"fold_*/{name}")):
        return
    try:
        before = _network(read_plans(plans), student.configuration)
    except (ValueError, KeyError):  # torn by a kill; nnU-Net writes it again
        return
    now = _network(student.plans, student.configuration)
    if before != now:
        raise ValueError(
            f"{folder} holds another student ({network_in_words(before)}) than these plans ask for "
            f"({network_in_words(now)}): give the plans another plans_name, or remove that folder"
        )


def readable_splits(preprocessed: Path) -> None:
    """Check that nnU-Net can read the data set's folds, where it has made them.

    Args:
        preprocessed: The data set's folder in ``nnUNet_preprocessed``.

    Raises:
        ValueError: If it cannot.
    """
    splits = preprocessed / "splits_final.json"
    if splits.is_file():
        try:
            read_splits(splits)
        except ValueError as error:  # nnU-Net was killed while it wrote them
            raise ValueError(f"{error}. If they are not your own, remove them: nnU-Net makes the same again") from None


def refuse_finished(folder: Path) -> None:
    """Refuse to train again where a training of this student has ended: prediction needs its checkpoint.

    Args:
        folder: Of the fold.

    Raises:
        FileExistsError: Where its last checkpoint is there.
    """
    if (folder / "checkpoint_final.pth").is_file():
        raise FileExistsError(
            f"{folder} holds a finished training, which stays as it is: add --val to validate it, --c to go on where "
            'the plans have more epochs now, or set "overwrite": true in nnunet_kd.training of the plans to train from '
            "the beginning"
        )


def set_aside(folder: Path) -> list[str]:
    """Rename the checkpoints of an earlier training in the folder of a fold; returns their names now.

    Else ``--c``, where the new training is stopped, would go on with the old one's end. What was set aside before, as
    several trainings were stopped, stays beside it.
    """
    prefixes = (f"{_EARLIER}{number}_" if number > 1 else _EARLIER for number in itertools.count(1))
    prefix = next(prefix for prefix in prefixes if not any(folder.glob(f"{prefix}checkpoint_*.pth")))
    there = [name for name in CHECKPOINTS if (folder / name).is_file()]
    for name in there:
        os.replace(folder / name, folder / f"{prefix}{name}")
    return [f"{prefix}{name}" for name in there]


def go_on_from_end(folder: Path) -> None:
    """Take the end of a training that goes on for more epochs for one of its saves.

    Else ``--c``, where it is stopped, would go on from there again, whatever was saved since.
    """
    final = folder / "checkpoint_final.pth"
    if final.is_file():
        os.replace(final, folder / "checkpoint_latest.pth")


def remove_aside(folder: Path) -> None:
    """What :func:`set_aside` has kept, once the new training has its own."""
    for path in folder.glob(f"{_EARLIER}*checkpoint_*.pth"):
        path.unlink()


def _network(plans: dict[str, Any], configuration: str) -> Any:
    content = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
    return json.loads(json.dumps(content))


class Lock:
    """Held by the process that trains in a folder; see :class:`nnunet_kd.storage.processes.FileLock`.

    Args:
        folder: Of one fold.

    Raises:
        BusyError: Where another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._lock = FileLock(folder / LOCK)
        except BusyError as error:
            raise BusyError(
                f"another process trains in {folder} now (process {error}): wait for it, or stop it"
            ) from None
        for leftover in folder.glob("*.unfinished*"):  # of a killed training; nobody else writes here
            leftover.unlink()

    def free(self) -> None:
        """At the end of the training."""
        self._lock.free()
