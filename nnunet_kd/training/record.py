"""The settings that a training's epochs were trained with, as its checkpoints keep them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.settings import TeacherSettings, TrainingSettings
from nnunet_kd.storage.integrity import file_digest, text_digest
from nnunet_kd.training.preparation import Preparation
from nnunet_kd.training.sources import find_soft_labels, teacher_files

Record = Mapping[str, Any]
# Settings that earlier versions did not have; their trainings had today's defaults.
LATER = ("deep_supervision", "one_pass_per_epoch", "plateau_patience", "cosine_epochs")
ORIGINS = ("teacher_checkpoints", "soft_labels_made_by")
DIGITS = 12  # of a digest that are kept


def record_of(preparation: Preparation) -> dict[str, Any]:
    """Return all settings that the result of a training depends on, defaults included, as plain values."""
    settings = preparation.settings
    configuration = PlansManager(preparation.student.plans).get_configuration(preparation.student.configuration)
    record = _given(settings.training)
    del record["overwrite"]  # does not influence the result
    record.update(
        batch_size=int(configuration.batch_size),
        patch_size=[int(side) for side in configuration.patch_size],
        batch_dice=bool(configuration.batch_dice),
    )
    record["terms"] = [str(term) for term in preparation.terms]
    record["term_options"] = [term.options for term in preparation.terms]
    if preparation.method is not None:
        record["method"] = asdict(preparation.method)
    if preparation.uses_teacher:
        record["teachers"] = [_given(teacher) for teacher in settings.teachers]
    record.update(_origins(preparation))
    return record


def _origins(preparation: Preparation) -> dict[str, Any]:
    """Return digests of the teachers' checkpoints and of the source of the soft labels, as far as they exist.

    Digests reveal that a teacher was replaced by another one under the same path.
    """
    found: dict[str, Any] = {}
    student = preparation.student
    with suppress(FileNotFoundError, ValueError):
        if preparation.uses_teacher:
            files = teacher_files(preparation)
            found["teacher_checkpoints"] = [file_digest(one.checkpoint)[:DIGITS] for one in files]
    with suppress(FileNotFoundError, ValueError):
        if term := preparation.soft_label_term:
            source = find_soft_labels(student, term).manifest.get("source", {})
            found["soft_labels_made_by"] = text_digest(json.dumps(source, sort_keys=True))[:DIGITS]
    return found


def changes(now: Record, before: Record) -> str:
    """Describe the differences between two records; an empty string means that there are none.

    Records of earlier versions lack the batch settings, the options of the terms and what unlabelled cases learn from,
    which are not compared then, and the settings of :data:`LATER`, which had their defaults then.
    Digests are compared only if both records have them, since teachers and soft labels may have been removed.
    """
    unknown = {"batch_size", "patch_size", "batch_dice", "term_options", "unlabelled"} - {*before}
    usual = asdict(TrainingSettings())
    before = {**{key: usual[key] for key in LATER if key in now}, **before}
    unknown |= {*ORIGINS} - ({*before} & {*now})
    different = [key for key in sorted({*before, *now} - unknown, key=str) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in different)


def about_changes(now: Record, before: Record | None, unfinished: bool) -> list[str]:
    """Return the line that says what has changed since a training began, or no line.

    Args:
        now: The record of the plans as they are.
        before: The record in the checkpoint, which those of early versions lack.
        unfinished: Whether the training goes on.
    """
    changed = "" if before is None else changes(now, before)
    if not changed:
        return []
    if unfinished:
        return [f"training resumes with other settings than it began with: {changed}"]
    return [f"was trained with other settings than the plans have now: {changed}"]


def _given(settings: TrainingSettings | TeacherSettings) -> dict[str, Any]:
    """Return the settings that are not ``None`` as plain values."""
    return {key: value for key, value in asdict(settings).items() if value is not None}


class History:
    """The records of one training, which its checkpoints keep.

    Args:
        now: The record of the epochs that are still to be trained.
    """

    def __init__(self, now: Record) -> None:
        self._now = now
        self._before: list[Record] = []
        self._epochs = 0

    def resume(self, saved: Mapping[str, Any], epochs: int) -> None:
        """Continue the history that :meth:`state` saved after ``epochs`` epochs."""
        self._before = records(saved)
        self._epochs = epochs

    def state(self, epochs: int) -> dict[str, Any]:
        """Return the records for a checkpoint after ``epochs`` epochs; settings that no epoch used are left out."""
        all_records = list(self._before)
        if not all_records or (epochs > self._epochs and all_records[-1] != self._now):
            all_records.append(self._now)
        return {"record": all_records[-1], "earlier_records": all_records[:-1]}


def records(saved: Mapping[str, Any]) -> list[Record]:
    """Return all records of a checkpoint in order; earlier versions of this package wrote none."""
    earlier = saved.get("earlier_records")
    every = [*(earlier if isinstance(earlier, list) else []), saved.get("record")]
    return [record for record in every if isinstance(record, dict)]
