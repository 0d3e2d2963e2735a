"""Write files and folders so that each is either complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LITTLE = 2**16  # bytes; a disk with less free space counts as full
_LONG = 3600.0  # seconds; a file that has not changed for this long is no longer being written
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


class UnwritableError(OSError):
    """A file or folder cannot be written; the message is one sentence that names it and says why."""


class DiskFullError(UnwritableError):
    """A file could not be written because the disk is full; the message is one sentence that names the file."""


def check_writable(path: Path) -> None:
    """Check that ``path`` can be created or replaced in the closest existing folder above it.

    Raises:
        UnwritableError: If it cannot; the message names the folder.
    """
    _check_writable(path, path.absolute().parents)


def check_writable_folder(folder: Path) -> None:
    """Check that files can be written into ``folder``, which need not exist yet.

    Raises:
        UnwritableError: See :func:`check_writable`.
    """
    _check_writable(folder, (folder.absolute(), *folder.absolute().parents))


def _check_writable(path: Path, folders: Iterable[Path]) -> None:
    there = next((folder for folder in folders if os.path.exists(folder)), path.parent)
    if not there.is_dir():
        raise UnwritableError(f"cannot write {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UnwritableError(
            f"cannot write {path}: you may not write to the folder {there}. Choose another folder, or change its "
            "permissions"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, whose file is flushed to the disk and replaces ``path`` at the end.

    If an error occurs, the temporary file is removed and ``path`` is not changed. The temporary file of a killed
    process is removed by the next process that writes the same file, but only an hour later on another machine.

    Raises:
        UnwritableError: If ``path`` is a folder, or lies in a folder that cannot be written to.
        DiskFullError: If the disk is full, which libraries report in many ways.
    """
    if path.is_dir():
        raise UnwritableError(f"cannot write {path}: it is a folder")
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        with naming_full_disk(path, replaced=True):
            yield unfinished
            put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Flush a file to the disk, and then rename it."""
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``, which is flushed to the disk and renamed to ``path`` at the end.

    If an error occurs, the hidden folder is removed.

    Raises:
        UnwritableError: If ``path`` lies in a folder that cannot be written to.
        DiskFullError: If the disk is full.
        FileExistsError: If ``path`` exists already.
    """
    _check_absent(path)
    with scratch_folder(path) as unfinished:
        yield unfinished
        flush_folder(unfinished)
        _check_absent(path)
        unfinished.rename(path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path`` that is removed at the end.

    The folder of a killed process is removed by the next process that asks for the same folder; on another machine,
    only an hour after the last change.

    Raises:
        UnwritableError: If ``path`` lies in a folder that cannot be written to.
        DiskFullError: If the disk is full.
    """
    check_writable(path)
    unfinished = _unfinished(path)
    try:
        with naming_full_disk(path):
            unfinished.mkdir(parents=True)
            yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_whole(path: Path, content: str) -> None:
    """Write a text file, which is either complete or absent."""
    with replacing(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def flush_folder(folder: Path) -> None:
    """Flush all files below a folder to the disk, so that a power failure does not leave empty files.

    Raises:
        OSError: If the disk is full, which can be reported as late as now.
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
    """Turn any error caused by a full disk into one sentence that names ``path``.

    Args:
        path: The file or folder that is written.
        replaced: Whether an existing file is only replaced at the end, so that it is still complete.

    Raises:
        DiskFullError: If the disk is full.
    """
    try:
        yield
    except UnwritableError:
        raise
    except (OSError, RuntimeError) as error:
        if is_full(error, path.parent):
            before = f"; the previous {path.name} is still complete" if replaced and path.is_file() else ""
            raise DiskFullError(f"cannot write {path}: the disk is full{before}") from error
        raise


def not_written(path: Path) -> DiskFullError:
    """Return the error to raise if a library has silently written an incomplete file."""
    if shutil.disk_usage(path.parent).free < _LITTLE:
        return DiskFullError(f"cannot write {path}: the disk is full")
    return DiskFullError(f"cannot write {path} completely: the disk was full, or is damaged")


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether writing into a folder failed because the disk is full."""
    if isinstance(error, UnwritableError):
        return isinstance(error, DiskFullError)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return shutil.disk_usage(folder).free < _LITTLE


def _check_absent(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} already exists")


def _unfinished(path: Path) -> Path:
    """Return this process's temporary path for ``path``, after removing those of killed processes.

    The name has at most 35 characters, because the name of ``path`` can be as long as the disk allows. PyTorch names
    the folder inside its files after the part before the last dot, so the last dot must not be the first character.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    hidden = f".unfinished_{digest}."
    for leftover in path.parent.glob(f"{hidden}*"):
        if not _is_abandoned(leftover, leftover.name[len(hidden) :]):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return path.with_name(f"{hidden}{_HOST}.{os.getpid()}")


def _is_abandoned(leftover: Path, owner: str) -> bool:
    """Return whether no process writes a temporary file any more; its owner is ``HOST.PROCESS``."""
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
    try:  # an ended process is listed as a zombie until its parent waits for it, which never happens in some containers
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
