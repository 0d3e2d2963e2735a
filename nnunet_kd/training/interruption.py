"""What a training leaves where it is stopped: the end of the last epoch it has finished.

Only there does ``--c`` go on exactly: in the middle of an epoch its log, its average and its batches have no end yet.
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
LARGEST = 2**30  # bytes of a checkpoint that is held in memory
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, the scheduler of a cluster, a terminal that is closed

_handlers: dict[int, Any] = {}  # of the signals, before a training took them


def usual_save_every(num_epochs: int) -> int:
    """Epochs between two saves: nnU-Net's number, but at most a tenth of the training."""
    return max(1, min(int(SCHEDULE["save_every"]), num_epochs // 10))


class LastEpoch:
    """The checkpoint of the last finished epoch: held in memory, and written where the training is stopped.

    It takes as much memory as the file, three times the weights: 22 MiB for a quarter of the width of a U-Net of 31
    million parameters, and as much time as a save without the disk, tenths of a second an epoch. Beyond
    :data:`LARGEST` nothing is held, and a stopped training goes on from its last save.

    Args:
        say: Writes a line into the log.
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
        """Hold the checkpoint of the epoch that has just ended, unless it is on the disk.

        Args:
            checkpoint: Makes it.
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
        self._say(
            f"checkpoints are larger than {LARGEST // 2**20} MiB: a training that is stopped goes on from its last save"
        )

    @contextmanager
    def saving(self, path: Path) -> Iterator[None]:
        """Around writing a checkpoint: a first signal waits, and a newer file is not replaced by what was held."""
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
        """Around a training: whatever stops it, the last finished epoch is written first.

        Signals then do what they did before; those that were ignored still are.

        Args:
            folder: Of the fold.
        """
        self._path, self._saved = folder / LATEST, False
        if threading.current_thread() is threading.main_thread():  # no other may
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
            _give_back()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Of a signal."""
        if self._writing and self._waiting is None:
            self._waiting = number
            return
        if not self._writing:  # else a second one: what is being written still has the file
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
            said = f"stopped: the last finished epoch is in {self._path}, add --c to go on from there"
        except OSError as error:
            said = f"stopped: the last finished epoch could not be saved: {error}"
        with suppress(OSError, RuntimeError):  # a signal may come while something else is printed
            self._say(said)
            sys.stdout.flush()


def _give_back() -> None:
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _handlers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_back)  # the processes that load batches end as they always did
