"""Nothing that a command reads is written over, whatever names lead to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

_Identity = tuple[int, int]  # device and inode


def check_kept(inputs: Iterable[Path], outputs: Iterable[Path], remedy: str) -> None:
    """Refuse to write where something lies that is read.

    Files decide, not names: a path through links or ``..``, a hard link, and a name in other capitals on a disk that
    does not tell them apart, are the same file.

    Args:
        inputs: What is read: files, and folders with the files in them. Those that do not exist are left out.
        outputs: Files or folders that will be written.
        remedy: What to do instead, as a sentence.

    Raises:
        ValueError: Naming the first output that is an input.
    """
    there = [(path, identity) for path in outputs if (identity := _identity(path)) is not None]
    if not there:
        return
    known: dict[_Identity, Path] = {}
    for path in _with_files(inputs):
        if (identity := _identity(path)) is not None:
            known.setdefault(identity, path)
    for path, identity in there:
        if identity in known:
            same = "" if known[identity] == path else f" the same as {known[identity]},"
            raise ValueError(f"cannot write {path}: it is{same} one of the inputs. {remedy}")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, where nothing needs to be yet, is a folder that is there or lies in it."""
    real = path.resolve()
    wanted = _identity(folder)
    return wanted is not None and any(_identity(one) == wanted for one in (real, *real.parents))


def _with_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if path.is_dir():
            yield from (entry for entry in path.iterdir() if entry.is_file())


def _identity(path: Path) -> _Identity | None:
    """Of what a path leads to; ``None`` where nothing is."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
