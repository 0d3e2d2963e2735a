"""Warnings of leakage in the plans that nnU-Net saves with the results of all folds."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import read_plans
from nnunet_kd.nnunet.settings import recorded_leakage, with_leakage
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.training.leakage import joined
from nnunet_kd.training.sources import Sources


def note_leakage(trainer: Any, sources: Sources, validation: Collection[str] | None) -> str | None:
    """Put a fold's warning into the plans that nnU-Net is about to save for all folds; those of other folds stay.

    Args:
        trainer: The trainer of the fold.
        sources: What its student learns from.
        validation: The fold's validation cases; ``None``: nothing is trained, and what was noted before holds.

    Returns:
        The warning; ``None``: nothing has leaked.
    """
    say = trainer.print_to_log_file
    try:
        notes = _noted(Path(trainer.output_folder_base))
    except ValueError as error:
        say(f"{error}: notes of leakage of other folds are lost")
        notes = {}
    fold = str(trainer.fold)
    warning: str | None
    if validation is None:
        warning = notes.get(fold, trainer.preparation.leakage)
    else:
        before = notes.get(fold, "") if trainer.resumes else ""  # of epochs that stay in the student
        now = [note for note in sources.leakage(validation) if note not in before]
        warning = joined([before or None, *now])
    notes.pop(fold, None)
    if warning is not None:
        notes[fold] = warning
    plans = trainer.plans_manager.plans
    noted = with_leakage(plans, notes)
    plans.clear()
    plans.update(noted)
    return warning


def keep_leakage(trainer: Any, warning: str | None) -> None:
    """Put a fold's warning into the results' plans again, in case a fold that began at the same time has lost it."""
    if trainer.local_rank == 0:
        try:
            _keep(Path(trainer.output_folder_base), str(trainer.fold), warning)
        except ValueError as error:  # the training is done, whatever becomes of the note
            trainer.print_to_log_file(f"{error}: the note of leakage may be lost")


def _noted(folder: Path) -> dict[str, str]:
    """What the results' plans say of teachers that have seen validation cases: student fold -> warning.

    Raises:
        ValueError: Where they cannot be read: nnU-Net does not write them atomically.
    """
    plans = folder / "plans.json"
    return recorded_leakage(read_plans(plans)) if plans.is_file() else {}


def _keep(folder: Path, fold: str, warning: str | None) -> None:
    """Put a fold's warning into the results' plans again, where a fold that began at the same time has lost it.

    Raises:
        ValueError: Where they cannot be read, as while that fold writes them.
    """
    notes = _noted(folder)
    if warning is not None and notes.get(fold) != warning:
        plans = with_leakage(read_plans(folder / "plans.json"), {**notes, fold: warning})
        write_whole(folder / "plans.json", json.dumps(plans, indent=4))
