"""Checks on the results folder of a training: is it writable, does it belong to this student, is it in use?"""

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
    """Return the results folder that all folds share; ``None`` if ``nnUNet_results`` is not set."""
    if not nnUNet_results.is_set():
        return None
    plans = student.plans
    name = f"{trainer}__{plans['plans_name']}__{student.configuration}"
    return Path(nnUNet_results.require()) / str(plans["dataset_name"]) / name


def has_checkpoints(folder: Path) -> bool:
    """Return whether a fold's folder has any checkpoint."""
    return any((folder / name).is_file() for name in CHECKPOINTS)


def check_results(folder: Path, student: Experiment) -> None:
    """Check that a results folder is writable and holds no checkpoints of another student.

    nnU-Net keeps one ``plans.json`` for all folds. Overwritten for another network, it would make the trained folds
    useless for prediction.

    Raises:
        OSError: If the folder is not writable.
        ValueError: If another student was trained in it.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OSError(f"cannot write results into {folder}: {existing} is read-only or belongs to another user")
    plans = folder / "plans.json"
    if not plans.is_file() or not any(path for name in CHECKPOINTS for path in folder.glob(f"fold_*/{name}")):
        return
    try:
        before = _network(read_plans(plans), student.configuration)
    except (ValueError, KeyError):  # truncated when nnU-Net was killed; nnU-Net writes it again
        return
    now = _network(student.plans, student.configuration)
    if before != now:
        raise ValueError(
            f"{folder} holds another student ({network_in_words(before)}) than these plans ask for "
            f"({network_in_words(now)}): give the plans another plans_name, or remove the folder"
        )


def readable_splits(preprocessed: Path) -> None:
    """Check that nnU-Net can read the folds of the data set, if they have been made.

    Args:
        preprocessed: The folder of the data set in ``nnUNet_preprocessed``.

    Raises:
        ValueError: If the file of the folds cannot be read.
    """
    splits = preprocessed / "splits_final.json"
    if splits.is_file():
        try:
            read_splits(splits)
        except ValueError as error:  # truncated when nnU-Net was killed
            raise ValueError(
                f"{error}. Remove the file unless you wrote it yourself: nnU-Net makes the same folds again"
            ) from None


def refuse_finished(folder: Path) -> None:
    """Refuse to replace a finished training, whose checkpoint predictions need.

    Args:
        folder: The fold's results folder.

    Raises:
        FileExistsError: If the folder has the checkpoint of a finished training.
    """
    if (folder / "checkpoint_final.pth").is_file():
        raise FileExistsError(
            f"{folder} holds a finished training, which is not overwritten: add --val to validate it, --c to resume "
            'if the plans have more epochs now, or set "overwrite": true in nnunet_kd.training of the plans to train '
            "from the start"
        )


def set_aside(folder: Path) -> list[str]:
    """Rename the checkpoints of an earlier training in a fold's folder, and return their new names.

    Otherwise ``--c`` would resume the earlier training after the new one was stopped. Checkpoints that were set aside
    before are kept.
    """
    prefixes = (f"{_EARLIER}{number}_" if number > 1 else _EARLIER for number in itertools.count(1))
    prefix = next(prefix for prefix in prefixes if not any(folder.glob(f"{prefix}checkpoint_*.pth")))
    found = [name for name in CHECKPOINTS if (folder / name).is_file()]
    for name in found:
        os.replace(folder / name, folder / f"{prefix}{name}")
    return [f"{prefix}{name}" for name in found]


def resume_from_end(folder: Path) -> None:
    """Rename the final checkpoint of a training that resumes for more epochs to its latest one.

    Otherwise ``--c`` would resume from the final checkpoint again, whatever was saved since.
    """
    final = folder / "checkpoint_final.pth"
    if final.is_file():
        os.replace(final, folder / "checkpoint_latest.pth")


def remove_aside(folder: Path) -> None:
    """Delete the checkpoints that :func:`set_aside` has kept, once the new training has its own."""
    for path in folder.glob(f"{_EARLIER}*checkpoint_*.pth"):
        path.unlink()


def _network(plans: dict[str, Any], configuration: str) -> Any:
    content = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
    return json.loads(json.dumps(content))


class Lock:
    """The lock of the process that trains in a folder; see :class:`nnunet_kd.storage.processes.FileLock`.

    Args:
        folder: The fold's results folder.

    Raises:
        BusyError: If another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._lock = FileLock(folder / LOCK)
        except BusyError as error:
            raise BusyError(
                f"another process trains in {folder} (process {error}): wait for it to end, or stop it"
            ) from None
        for leftover in folder.glob("*.unfinished*"):  # left by a killed training; only the lock's owner writes here
            leftover.unlink()

    def free(self) -> None:
        """Release the lock at the end of the training."""
        self._lock.free()
