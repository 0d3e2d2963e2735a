"""Remember the files that a result was made from, and notice later that one of them has changed.

A file of the same size and modification time counts as unchanged, which costs nothing to find out. Only a file that
differs in one of them, such as a copy, is read, and its SHA-256 decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_kd.storage.integrity import file_digest

Known = Mapping[str, Mapping[str, Any]]  # file name -> size, modification time and SHA-256


def describe_originals(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Describe files by their names, for :func:`changed_original`.

    Returns:
        The size in bytes, the modification time in nanoseconds and the SHA-256 of every file; JSON can hold them.
    """
    described = {}
    for path in paths:
        before = path.stat()  # a change while the file is read must not go unnoticed
        described[path.name] = {
            "bytes": before.st_size,
            "modified": before.st_mtime_ns,
            "sha256": file_digest(path),
        }
    return described


def changed_original(paths: Iterable[Path], known: Known) -> Path | None:
    """Return the first file whose content is not as it was described, or ``None``.

    Args:
        paths: The files as they are now.
        known: What :func:`describe_originals` has returned. A file that it does not name counts as changed.
    """
    return next((path for path in paths if _has_changed(path, known.get(path.name))), None)


def _has_changed(path: Path, known: Mapping[str, Any] | None) -> bool:
    if known is None or not path.is_file():
        return True
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) == (known["bytes"], known["modified"]):
        return False
    return now.st_size != known["bytes"] or file_digest(path) != str(known["sha256"])
