"""The settings a training was made with: another record for every stretch of epochs that had others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]


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
