"""What a training was made with: the settings of every stretch of epochs, kept in its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.settings import TeacherSettings, TrainingSettings
from nnunet_kd.storage.integrity import file_digest, text_digest
from nnunet_kd.teachers.find import find_teachers
from nnunet_kd.training.preparation import Preparation
from nnunet_kd.training.sources import find_soft_labels

Record = Mapping[str, Any]
ORIGINS = ("teacher_checkpoints", "soft_labels_made_by")
DIGITS = 12  # of a digest


def record_of(preparation: Preparation) -> dict[str, Any]:
    """Return what a training depends on beside network and data, in plain values: defaults may change after it."""
    settings = preparation.settings
    configuration = PlansManager(preparation.student.plans).get_configuration(preparation.student.configuration)
    record = _given(settings.training)
    del record["overwrite"]  # of no influence
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
    """Digests of what is learnt from, as far as it is there: teachers' checkpoints, how soft labels were made.

    Another teacher may have taken the place and the name of the one before.
    """
    found: dict[str, Any] = {}
    student = preparation.student
    with suppress(FileNotFoundError, ValueError):
        if preparation.uses_teacher:
            files = find_teachers(preparation.settings.teachers, student, preparation.fold)
            found["teacher_checkpoints"] = [file_digest(one.checkpoint)[:DIGITS] for one in files]
    with suppress(FileNotFoundError, ValueError):
        if term := preparation.soft_label_term:
            source = find_soft_labels(student, term).manifest.get("source", {})
            found["soft_labels_made_by"] = text_digest(json.dumps(source, sort_keys=True))[:DIGITS]
    return found


def changes(now: Record, before: Record) -> str:
    """Say what differs between two records; empty: nothing.

    A record of an earlier version does not tell the batch, or all of the terms. Of what is learnt from only what both
    know is compared: it need not be there any more.
    """
    unknown = {"batch_size", "patch_size", "batch_dice", "term_options"} - {*before}
    unknown |= {*ORIGINS} - ({*before} & {*now})
    different = [key for key in sorted({*before, *now} - unknown, key=str) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in different)


def _given(settings: TrainingSettings | TeacherSettings) -> dict[str, Any]:
    """The settings that are not ``None``, in plain values."""
    return {key: value for key, value in asdict(settings).items() if value is not None}


class History:
    """Of one training, kept in its checkpoints.

    Args:
        now: Settings of the epochs to come, in plain values.
    """

    def __init__(self, now: Record) -> None:
        self._now = now
        self._before: list[Record] = []
        self._epochs = 0

    def resume(self, saved: Mapping[str, Any], epochs: int) -> None:
        """Go on with what :meth:`state` gave, after so many epochs."""
        self._before = records(saved)
        self._epochs = epochs

    def state(self, epochs: int) -> dict[str, Any]:
        """For a checkpoint after so many epochs: settings that no epoch was trained with are not among them."""
        all_records = list(self._before)
        if not all_records or (epochs > self._epochs and all_records[-1] != self._now):
            all_records.append(self._now)
        return {"record": all_records[-1], "earlier_records": all_records[:-1]}


def records(saved: Mapping[str, Any]) -> list[Record]:
    """All records of a checkpoint, in turn; none where an earlier version of this package wrote it."""
    earlier = saved.get("earlier_records")
    every = [*(earlier if isinstance(earlier, list) else []), saved.get("record")]
    return [record for record in every if isinstance(record, dict)]
