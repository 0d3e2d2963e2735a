"""Files that are complete or not there."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LITTLE = 2**16  # bytes
_LONG = 3600.0  # seconds; nothing is written for so long without a change


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; goes onto the disk and takes its place at the end.

    Where the end is not reached it is removed and ``path`` stays as it was. What a process left that was killed before
    its end is removed by the next that writes the same file an hour later.

    Raises:
        OSError: One sentence, where the disk is full: libraries say it in many ways.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        if is_full(error, path.parent):
            before = f"; the {path.name} from before is whole" if path.exists() else ""
            raise OSError(f"cannot write {path}: the disk is full{before}") from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: str) -> None:
    """Write a text file."""
    with replacing(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def is_full(error: Exception, folder: Path) -> bool:
    """Whether writing into a folder failed because there is no space left."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return shutil.disk_usage(folder).free < _LITTLE


def _remove_abandoned(path: Path) -> None:
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.unfinished"):
        try:
            if time.time() - leftover.stat().st_mtime > _LONG:
                leftover.unlink()
        except FileNotFoundError:  # another process was faster
            continue
