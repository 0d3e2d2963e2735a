"""Files and folders that are complete or not there."""

from __future__ import annotations

import errno
import glob
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LITTLE = 2**16  # bytes
_LONG = 3600.0  # seconds; nothing is written for so long without a change
_HOST = platform.node()[:40]


class DiskFullError(OSError):
    """One sentence: which file could not be written, because the disk is full."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; goes onto the disk and takes its place at the end.

    Where the end is not reached it is removed and ``path`` stays as it was. What a killed process left is removed by
    the next that writes the same file; an hour later, if that runs on another machine.

    Raises:
        DiskFullError: Where the disk is full: libraries say it in many ways.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.unfinished"):
        if _is_abandoned(leftover, leftover.name[len(path.name) + 1 : -len(".unfinished")]):
            leftover.unlink(missing_ok=True)
    unfinished = path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.unfinished")
    try:
        with naming_full_disk(path, replaced=True):
            yield unfinished
            put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Have a file on the disk, then give it its name."""
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write to; goes onto the disk and takes its place at the end.

    Where the end is not reached it is removed.

    Raises:
        DiskFullError: Where the disk is full.
        FileExistsError: Where ``path`` is there already.
    """
    _check_absent(path)
    with scratch_folder(path) as unfinished:
        yield unfinished
        flush_folder(unfinished)
        _check_absent(path)
        unfinished.rename(path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, removed at the end.

    What a killed process left is removed by the next that asks for the same; an hour after its last file, if that
    runs on another machine.

    Raises:
        DiskFullError: Where the disk is full.
    """
    hidden = f".unfinished_{path.name}"
    for leftover in path.parent.glob(f"{glob.escape(hidden)}*"):
        owner = leftover.name[len(hidden) + 1 :]
        if leftover.name in (hidden, f"{hidden}.{owner}") and _is_abandoned(leftover, owner):
            shutil.rmtree(leftover, ignore_errors=True)
    unfinished = path.with_name(f"{hidden}.{_HOST}.{os.getpid()}")
    try:
        with naming_full_disk(path):
            unfinished.mkdir(parents=True)
            yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_whole(path: Path, content: str) -> None:
    """Write a text file."""
    with replacing(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def flush_folder(folder: Path) -> None:
    """Have all files below a folder on the disk, so that a power failure does not leave empty ones.

    Raises:
        OSError: Where the disk was full, and it comes out now.
    """
    if os.name != "posix":
        return
    for path in [*sorted(folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming_full_disk(path: Path, replaced: bool = False) -> Iterator[None]:
    """Where a full disk ends the work, say in one sentence that ``path`` could not be written.

    Args:
        path: Of a file or folder.
        replaced: A file that is there already is still whole.

    Raises:
        DiskFullError: So.
    """
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, RuntimeError) as error:
        if is_full(error, path.parent):
            before = f"; the {path.name} from before is whole" if replaced and path.is_file() else ""
            raise DiskFullError(f"cannot write {path}: the disk is full{before}") from error
        raise


def not_written(path: Path) -> DiskFullError:
    """What to raise for a file that is not what was written, where the library that wrote it said nothing."""
    if shutil.disk_usage(path.parent).free < _LITTLE:
        return DiskFullError(f"cannot write {path}: the disk is full")
    return DiskFullError(f"cannot write {path} whole: the disk was full, or is damaged")


def is_full(error: Exception, folder: Path) -> bool:
    """Whether writing into a folder failed because there is no space left."""
    if isinstance(error, DiskFullError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return shutil.disk_usage(folder).free < _LITTLE


def _check_absent(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already")


def _is_abandoned(leftover: Path, owner: str) -> bool:
    """Whether nobody writes it any more; the owner is ``HOST.PROCESS``."""
    host, _, process = owner.rpartition(".")
    if host == _HOST and process.isdecimal() and os.name == "posix":
        return int(process) == os.getpid() or not _is_alive(int(process))
    try:
        changed = max(path.stat().st_mtime for path in (leftover, *leftover.glob("*")))
    except FileNotFoundError:  # another process was faster
        return False
    return time.time() - changed > _LONG


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # one that has ended stays in the list until its parent has asked about it, which some containers' never does
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
