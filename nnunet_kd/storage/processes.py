"""Processes: no more than there are cores, none that outlives its parent, and no two that work in one place."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from typing import IO


class BusyError(RuntimeError):
    """Another process works there."""


class FileLock:
    """A file that one process holds; the system frees it when that process ends, however it ends.

    Where a disk or a system has no locks nothing is checked.

    Args:
        path: Of the file, in a folder that is there.

    Raises:
        BusyError: If another process holds it; the message is the number of that process, where it is known.
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

    def free(self) -> None:
        """When the work is done."""
        if os.name == "nt":  # which removes no open file; elsewhere closing it would let another process in
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._file.close()


def holder_of(path: Path) -> str | None:
    """Number of the other process that holds a :class:`FileLock`; ``None``: no other process does."""
    try:
        with path.open("r+") as file:
            return _try_to_lock(file)
    except OSError:  # not there, or not ours to open
        return None


def _try_to_lock(file: IO[str]) -> str | None:
    """The process that is in the way, if one is."""
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


# Variables of nnU-Net, and how many processes it starts where they are not set: to export segmentations and compute
# metrics, as validation does, and to load and augment batches. It counts the cores of the machine for the second only.
USUAL_PROCESSES = {"nnUNet_def_n_proc": 8, "nnUNet_n_proc_DA": min(12, os.cpu_count() or 1)}


def usable_cores() -> int:
    """Cores this process may use; a job of a cluster has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_limits() -> dict[str, str]:
    """Variables of nnU-Net by which it starts no more processes than there are cores.

    Returns:
        Those that are not set, and without which it would start more.
    """
    cores = usable_cores()
    return {name: str(cores) for name, usual in USUAL_PROCESSES.items() if usual > cores and name not in os.environ}


def end_with_parent() -> None:
    """Initializer of a pool's processes: each ends with the one that started it, even where that was killed.

    Otherwise they would do what is queued, beside a second run, and then wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
