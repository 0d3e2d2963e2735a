"""A program between a command and the process that wants it done: all of the command ends with either.

Run as a file, with the command as arguments; its standard input is the other process's hold on it. A command of
nnU-Net starts processes of its own, which would go on writing, or wait for ever, where it is killed.
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

GRACE = 10.0  # seconds to save the last epoch of a training, and to clean up shared memory


def supervise(words: Sequence[str]) -> int:
    """Run a command in a group of its own, to its end or that of standard input; returns its exit status."""
    signal.signal(signal.SIGTERM, _stop)
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
    """All processes of a group, politely first."""
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
