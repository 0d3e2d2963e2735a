"""Progress with the time left, read from what nnU-Net's and our own commands print."""

from __future__ import annotations

import re
import time

_BAR = re.compile(r"(\d+)/(\d+) \[[\d:]+<([\d:]+)")  # of tqdm: cases that are done, all cases, and the time left
_OFTEN = 15.0  # seconds between two lines about the same bar


class Progress:
    """The progress of one command.

    Args:
        epochs: The number of epochs that it trains.
    """

    def __init__(self, epochs: int | None = None) -> None:
        self._epochs = epochs
        self._first: tuple[int, float] | None = None  # the first epoch of this run, and when it began
        self._said = time.monotonic()

    def line(self, printed: str) -> str | None:
        """Return what to show of a line that the command has printed; ``None`` for nothing."""
        text = printed.split(": ", 1)[-1].strip()
        if text.startswith(("Pseudo dice", "Mean Validation Dice", "initial weights: ")):
            return text
        if text.startswith("Epoch ") and text[6:].isdecimal():
            return self._epoch(int(text[6:]))
        found = _BAR.search(printed)
        if found is None or found[1] == "0" or time.monotonic() - self._said < _OFTEN:
            return None
        self._said = time.monotonic()
        return f"{found[1]} of {found[2]}, about {found[3]} left"

    def _epoch(self, number: int) -> str:
        if self._epochs is None:
            return f"epoch {number + 1}"
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
        first, begun = self._first
        left = (
            "" if number == first else f", about {_clock((now - begun) / (number - first) * (self._epochs - number))}"
        )
        return f"epoch {number + 1} of {self._epochs}{left and f'{left} left'}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
