"""Leakage warnings in the plans that nnU-Net saves in the results folder."""

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
    """Put a fold's warning into the plans that nnU-Net is about to save, and keep the other folds' warnings.

    Args:
        trainer: The trainer of the fold.
        sources: The sources of its student.
        validation: The fold's validation cases; ``None`` if nothing is trained, so that the earlier warning holds.

    Returns:
        The warning, or ``None`` if nothing has leaked.
    """
    say = trainer.print_to_log_file
    try:
        notes = _noted(Path(trainer.output_folder_base))
    except ValueError as error:
        say(f"{error}: the leakage warnings of other folds are lost")
        notes = {}
    fold = str(trainer.fold)
    warning: str | None
    if validation is None:
        warning = notes.get(fold, trainer.preparation.leakage)
    else:
        before = notes.get(fold, "") if trainer.resumes else ""  # earlier epochs still count in a resumed training
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
    """Restore a fold's warning in the results folder if a fold that began at the same time has overwritten it."""
    if trainer.local_rank == 0:
        try:
            _keep(Path(trainer.output_folder_base), str(trainer.fold), warning)
        except ValueError as error:  # a finished training must not fail because of its warning
            trainer.print_to_log_file(f"{error}: the note of leakage may be lost")


def _noted(folder: Path) -> dict[str, str]:
    """Return the leakage warnings in the plans of the results folder: student fold -> warning.

    Raises:
        ValueError: If the plans cannot be read, for nnU-Net does not write them atomically.
    """
    plans = folder / "plans.json"
    return recorded_leakage(read_plans(plans)) if plans.is_file() else {}


def _keep(folder: Path, fold: str, warning: str | None) -> None:
    """Put a fold's warning back into the plans of the results folder, if it is missing.

    Raises:
        ValueError: If the plans cannot be read, for example while another fold writes them.
    """
    notes = _noted(folder)
    if warning is not None and notes.get(fold) != warning:
        plans = with_leakage(read_plans(folder / "plans.json"), {**notes, fold: warning})
        write_whole(folder / "plans.json", json.dumps(plans, indent=4))
