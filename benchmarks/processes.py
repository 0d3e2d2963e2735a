"""Run a command in a process of its own, and measure its time and memory (Linux)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a command used.

    Attributes:
        seconds: From its start to its end.
        peak: The largest memory of all its processes together in bytes, with shared pages counted once.
        failed: The last line that it printed before it failed; ``None`` if it succeeded.
    """

    seconds: float
    peak: int
    failed: str | None


def run_measured(words: Sequence[str], largest: int | None = None) -> Usage:
    """Run an installed command.

    Args:
        words: The command and its arguments.
        largest: The address space in bytes that each of its processes may use.
    """

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_AS, (largest, largest))

    program = str(Path(sys.executable).with_name(words[0]))
    start = time.perf_counter()
    process = subprocess.Popen(
        [program, *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limit
    )
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        pause = 0.1
        while not ended.wait(pause):
            began = time.perf_counter()
            peak = max(peak, sum(map(_proportional_set, _family(process.pid))))
            pause = max(0.1, 50 * (time.perf_counter() - began))  # reading a large process's pages stops it meanwhile

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read().decode().strip()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watcher.join()
    lines = [line for line in said.splitlines() if "resource_tracker" not in line]  # which complains last
    last = lines[-1][:200] if lines else f"status {process.returncode}"
    # The system knows the exact peak of the first process, which is the only one of ours.
    return Usage(seconds, max(peak, used.ru_maxrss * 1024), last if status else None)


def _family(process: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(one for child in children for one in _family(int(child)))]


def _proportional_set(process: int) -> int:
    """Return the bytes that a process holds, including its share of shared pages."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
