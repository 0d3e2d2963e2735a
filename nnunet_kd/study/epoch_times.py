"""How far a training is and how long its epochs take, read from the log of nnU-Net's command."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_EPOCH = re.compile(r": Epoch (\d+) *$", re.MULTILINE)
_TIME = re.compile(r": Epoch time: ([\d.]+) s *$", re.MULTILINE)
_TAIL = 200_000  # bytes; about two hundred epochs


@dataclass(frozen=True)
class EpochTimes:
    """What the end of a log tells.

    Attributes:
        epoch: The number of the epoch that was begun last, from 0.
        seconds: The median duration of the last epochs in seconds; ``None`` before the end of the first.
    """

    epoch: int
    seconds: float | None

    def left(self, epochs: int) -> float | None:
        """Return the seconds that are left of a training of ``epochs`` epochs, its validation excepted."""
        return None if self.seconds is None else max(0, epochs - self.epoch) * self.seconds


def epoch_times(path: Path) -> EpochTimes | None:
    """Read a log; return ``None`` if there is none or no epoch has begun."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    begun = _EPOCH.findall(text)
    if not begun:
        return None
    times = sorted(float(seconds) for seconds in _TIME.findall(text)[-51:])
    return EpochTimes(int(begun[-1]), times[len(times) // 2] if times else None)


def in_words(seconds: float) -> str:
    """Return a duration as a person writes it: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for unit, size, most in (("s", 1.0, 90.0), ("min", 60.0, 90.0), ("h", 3600.0, 48.0)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}" if size < 3600 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
