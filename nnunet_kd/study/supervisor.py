"""A program that runs a command for a parent process and ends all processes of the command when either ends.

Run this file with the command as its arguments. The parent holds its standard input open; the command ends when that
closes. Without this program, the worker processes of a killed nnU-Net command would keep writing or wait for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

GRACE = 10.0  # seconds for a training to save its last epoch and for cleaning up shared memory


def supervise(words: Sequence[str]) -> int:
    """Run a command in its own process group until it or standard input ends; return its exit status."""
    signal.signal(signal.SIGTERM, _stop)
    for name in ("SIGUSR1", "SIGUSR2"):  # Slurm sends them to every process of a job before its time is over
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    command = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        threading.Thread(target=_end_with_input, args=(command.pid,), daemon=True).start()
        status = command.wait()
        return status if status >= 0 else 128 - status
    finally:
        _end(command.pid)


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_input(group: int) -> None:
    while os.read(0, 1):
        pass
    _end(group)


def _end(group: int) -> None:
    """End all processes of a group: ask them to stop, wait, then kill them."""
    try:
        os.killpg(group, signal.SIGTERM)
        stop = time.monotonic() + GRACE
        while time.monotonic() < stop:
            time.sleep(0.01)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
