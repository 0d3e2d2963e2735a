"""A line on standard error that says how far a command is and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

_SOONEST = 0.2  # seconds between two lines


def shown(work: Iterable[Any], count: int, unit: str, leave: bool) -> Iterator[Any]:
    """Yield pieces of work and show how many are done.

    Args:
        work: The pieces.
        count: Their number.
        unit: What one piece is called.
        leave: Leave the last line standing.
    """
    start, last = time.perf_counter(), 0.0
    for done, piece in enumerate(work):
        now = time.perf_counter()
        if now - last > _SOONEST:
            last = now
            _say(f"{done}/{count} {unit}s{_left(now - start, done, count)}")
        yield piece
    if leave:
        _say(f"{count}/{count} {unit}s in {time.perf_counter() - start:.1f} s\n")


def _left(seconds: float, done: int, count: int) -> str:
    return f", {seconds / done * (count - done):.0f} s left" if done else ""


def _say(text: str) -> None:
    if text.endswith("\n") or sys.stderr.isatty():
        print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
