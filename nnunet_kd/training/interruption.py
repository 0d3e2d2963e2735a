"""Saving the last finished epoch when a training is stopped.

``--c`` resumes exactly only from the end of an epoch: within one, log, weight average and batches are incomplete.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from nnunet_kd.nnunet.settings import SCHEDULE
from nnunet_kd.storage.writing import replacing

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
LARGEST = 2**30  # bytes; larger checkpoints are not held in memory
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a cluster's scheduler, a closed terminal

_handlers: dict[int, Any] = {}  # the handlers that a running training replaces


def usual_save_every(num_epochs: int) -> int:
    """Return the number of epochs between two checkpoints: nnU-Net's, but at most a tenth of the training."""
    return max(1, min(int(SCHEDULE["save_every"]), num_epochs // 10))


class LastEpoch:
    """The checkpoint of the last finished epoch, held in memory and written if the training is stopped.

    It takes as much memory as its file, three times the weights (22 MiB for a quarter of the width of a U-Net with 31
    million parameters), and tenths of a second per epoch. Checkpoints above :data:`LARGEST` are not held; a stopped
    training then resumes from its last save.

    Args:
        say: The function that writes a line to the log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._held: bytes | None = None
        self._saved = False
        self._too_large = False
        self._writing = False
        self._waiting: int | None = None
        self._path: Path | None = None

    def hold(self, checkpoint: Callable[[], Mapping[str, Any]]) -> None:
        """Hold the checkpoint of the epoch that has just ended, unless it is saved already.

        Args:
            checkpoint: The function that makes the checkpoint.
        """
        if self._path is None or self._saved or self._too_large:
            self._saved = False
            return
        buffer = io.BytesIO()
        torch.save(checkpoint(), buffer)
        self._too_large = buffer.getbuffer().nbytes > LARGEST
        if not self._too_large:
            self._held = buffer.getvalue()
            return
        self._say(f"checkpoints are larger than {LARGEST // 2**20} MiB: a stopped training resumes from its last save")

    @contextmanager
    def saving(self, path: Path) -> Iterator[None]:
        """Delay a first signal while a checkpoint is written, and discard the held checkpoint afterwards."""
        self._writing = True
        try:
            yield
            if path.name != BEST:
                self._held, self._saved = None, True
        finally:
            self._writing = False
            if self._waiting is not None:
                number, self._waiting = self._waiting, None
                signal.raise_signal(number)

    @contextmanager
    def saved_when_stopped(self, folder: Path) -> Iterator[None]:
        """Write the last finished epoch if the training in this block is stopped, whatever stops it.

        Signals then have their previous effect; ignored signals remain ignored.

        Args:
            folder: The fold's results folder.
        """
        self._path, self._saved = folder / LATEST, False
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    _handlers[number] = signal.signal(number, self._stop)
        try:
            yield
        except BaseException:
            self._write()
            raise
        finally:
            self._held = self._path = None
            _restore_handlers()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: write the last finished epoch, then call the previous handler."""
        if self._writing and self._waiting is None:
            self._waiting = number
            return
        if not self._writing:  # a second signal during a save must not write the same file
            self._write()
        before = _handlers.get(number, signal.SIG_DFL)
        if callable(before):
            before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _write(self) -> None:
        held, self._held = self._held, None
        if held is None or self._path is None:
            return
        try:
            with replacing(self._path) as unfinished:
                unfinished.write_bytes(held)
            said = f"stopped: the last finished epoch is in {self._path}, add --c to resume from there"
        except OSError as error:
            said = f"stopped: the last finished epoch could not be saved: {error}"
        with suppress(OSError, RuntimeError):  # a signal can interrupt another print
            self._say(said)
            sys.stdout.flush()


def _restore_handlers() -> None:
    """Restore the previous signal handlers."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _handlers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_handlers)  # data loading processes keep their usual handlers
