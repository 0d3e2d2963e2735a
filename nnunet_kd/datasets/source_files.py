"""Find files in a published source, whatever operating systems and download tools leave beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from nnunet_kd.nnunet.images import is_left_over


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name, without hidden files and files that systems leave behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not is_left_over(path.name))


def folders_below(folder: Path) -> Iterator[Path]:
    """Yield all folders at any depth below a folder, except those that systems leave behind.

    The walk follows symbolic links and visits each folder once.
    """
    seen = set()
    for path, names, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # links may lead in a circle
            names.clear()
            continue
        seen.add(real)
        names[:] = [name for name in names if not is_left_over(name)]
        yield from (Path(path) / name for name in names)


def find_file(folder: Path, *endings: str) -> Path | None:
    """Return the first file of a folder whose name has one of the endings, in any case; ``None`` if there is none.

    A link to a file that was not fetched yet, as git-annex makes them, counts as a file: reading it says what is wrong.
    """
    if not folder.is_dir():
        return None
    for path in entries(folder):
        named = path.name.lower().endswith(tuple(ending.lower() for ending in endings))
        if named and (path.is_file() or is_dangling(path)):
            return path
    return None


def is_dangling(path: Path) -> bool:
    """Return whether a path is a link whose target does not exist."""
    return path.is_symlink() and not path.exists()


def missing(files: Mapping[str, Path | None], folder: Path) -> str | None:
    """Return a sentence that names the roles without a file; ``None`` if every role has one.

    Args:
        files: Role -> file.
        folder: The folder that the sentence names.
    """
    lost = [role for role, path in files.items() if path is None]
    return f"{folder} has no {', '.join(lost)}" if lost else None
