"""Protect the inputs of a command from being overwritten under another name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

_Identity = tuple[int, int]  # device and inode


def check_kept(inputs: Iterable[Path], outputs: Iterable[Path], remedy: str) -> None:
    """Refuse to overwrite an input with an output.

    Files are compared by identity, not by name: a path through links or ``..``, a hard link, and a name in another
    case on a case-insensitive disk all refer to the same file.

    Args:
        inputs: The files that are read, and the folders whose files are read. Missing ones are ignored.
        outputs: The files or folders that will be written.
        remedy: What to do instead, as a sentence.

    Raises:
        ValueError: If an output is an input; the message names the first one.
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
    """Return whether a path, which need not exist, is an existing folder or lies in it."""
    real = path.resolve()
    wanted = _identity(folder)
    return wanted is not None and any(_identity(one) == wanted for one in (real, *real.parents))


def _with_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if path.is_dir():
            yield from (entry for entry in path.iterdir() if entry.is_file())


def _identity(path: Path) -> _Identity | None:
    """Return the identity of the file that a path leads to, or ``None`` if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
