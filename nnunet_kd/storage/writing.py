"""Files and folders that are complete or not there."""

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

_LITTLE = 2**16  # bytes
_LONG = 3600.0  # seconds; nothing is written for so long without a change
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


class UnwritableError(OSError):
    """One sentence: which file or folder cannot be written, and why."""


class DiskFullError(UnwritableError):
    """One sentence: which file could not be written, because the disk is full."""


def check_writable(path: Path) -> None:
    """That the folders above ``path``, as far as they are there, let it be made or replaced.

    Raises:
        UnwritableError: Naming the folder that does not.
    """
    _check_writable(path, path.absolute().parents)


def check_writable_folder(folder: Path) -> None:
    """That files can be written into ``folder``, whether it is there already or has to be made.

    Raises:
        UnwritableError: As :func:`check_writable`.
    """
    _check_writable(folder, (folder.absolute(), *folder.absolute().parents))


def _check_writable(path: Path, folders: Iterable[Path]) -> None:
    there = next((folder for folder in folders if os.path.exists(folder)), path.parent)
    if not there.is_dir():
        raise UnwritableError(f"cannot write {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UnwritableError(
            f"cannot write {path}: you may not write to the folder {there}. Choose another one, or change its rights"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; goes onto the disk and takes its place at the end.

    Where the end is not reached it is removed and ``path`` stays as it was. What a killed process left is removed by
    the next that writes the same file; an hour later, if that runs on another machine.

    Raises:
        UnwritableError: If ``path`` is a folder, or lies in one that cannot be written to.
        DiskFullError: If the disk is full: libraries say it in many ways.
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
    """Have a file on the disk, then give it its name."""
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write to; goes onto the disk and takes its place at the end.

    Where the end is not reached it is removed.

    Raises:
        UnwritableError: If ``path`` lies in a folder that cannot be written to.
        DiskFullError: If the disk is full.
        FileExistsError: If ``path`` is there already.
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
    """Write a text file."""
    with replacing(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def flush_folder(folder: Path) -> None:
    """Have all files below a folder on the disk, so that a power failure does not leave empty ones.

    Raises:
        OSError: If the disk was full, and it comes out now.
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
    except UnwritableError:
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
    if isinstance(error, UnwritableError):
        return isinstance(error, DiskFullError)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return shutil.disk_usage(folder).free < _LITTLE


def _check_absent(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already")


def _unfinished(path: Path) -> Path:
    """Where this process writes what will be ``path``; what killed processes left of the same is removed.

    The name has at most 35 letters: that of ``path`` may be as long as the disk allows. PyTorch names the folder in its
    files after what comes before the last dot, which must not be the first letter.
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
