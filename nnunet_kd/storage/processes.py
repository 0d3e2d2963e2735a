"""Control of processes: at most one per core, none that outlives its parent, and no two that use the same folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO


class BusyError(RuntimeError):
    """Another process holds the lock."""


class FileLock:
    """A lock file that one process can hold, which the system releases when that process ends for any reason.

    If the disk or the operating system does not support locks, nothing is checked.

    Args:
        path: The path of the lock file, in an existing folder.

    Raises:
        BusyError: If another process holds the lock; the message is the number of that process, or ``unknown``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+")
        if (holder := _try_to_lock(self._file)) is not None:
            self._file.close()
            raise BusyError(holder)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    @classmethod
    def within(cls, patience: float, path: Path, waits: Callable[[str], None]) -> FileLock:
        """Return the lock, after up to so many seconds in which another process holds it.

        Args:
            patience: The number of seconds.
            path: The path of the lock file, in an existing folder.
            waits: What is called once with the number of the process that holds the lock, if there is one to wait for.

        Raises:
            BusyError: If another process still holds the lock.
        """
        end, said = time.monotonic() + patience, False
        while True:
            try:
                return cls(path)
            except BusyError as error:
                if time.monotonic() >= end:
                    raise
                if not said:
                    waits(str(error))
                    said = True
                time.sleep(0.5)

    def free(self) -> None:
        """Release the lock and remove the file."""
        if os.name == "nt":  # Windows cannot remove an open file; elsewhere, closing it first would free the lock early
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._file.close()


def holder_of(path: Path) -> str | None:
    """Return the number of the other process that holds a :class:`FileLock`, or ``None`` if no other process does."""
    try:
        with path.open("r+") as file:
            return _try_to_lock(file)
    except OSError:  # the file is missing, or belongs to somebody else
        return None


def _try_to_lock(file: IO[str]) -> str | None:
    """Try to lock a file, and return the number of the process that holds the lock already, if any."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loading workers
    except ImportError:  # Windows
        return None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        file.seek(0)
        return file.read().strip() or "unknown"
    return None


# nnU-Net's variables, and the number of processes that it starts if they are not set. The first variable limits the
# export of segmentations and the computation of metrics, the second the loading and augmentation of batches. Only for
# the second does nnU-Net consider the cores of the machine.
USUAL_PROCESSES = {"nnUNet_def_n_proc": 8, "nnUNet_n_proc_DA": min(12, os.cpu_count() or 1)}


def usable_cores() -> int:
    """Return the number of cores that this process can use; a cluster's job has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_limits() -> dict[str, str]:
    """Return the variables that keep nnU-Net from starting more processes than there are cores.

    Returns:
        The values of the variables that are not set yet and whose default exceeds the number of cores.
    """
    cores = usable_cores()
    return {name: str(cores) for name, usual in USUAL_PROCESSES.items() if usual > cores and name not in os.environ}


def end_with_parent() -> None:
    """Make a worker process of a pool end with its parent, even if the parent is killed.

    Without this initializer, workers would finish their queue beside a second run, and then wait forever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
