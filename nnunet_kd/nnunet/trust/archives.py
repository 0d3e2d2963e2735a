"""Zip archives that may come from anybody: nothing of them is written elsewhere or becomes far larger than they are."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from nnunet_kd.storage.writing import DiskFullError, is_full

MOST_FILES = 10_000
# Bytes that come out for one that went in. Weights hardly compress; text, twentyfold.
MOST_COMPRESSED = 100
_LITTLE = 2**24  # bytes; below it anything may be compressed as it likes


def check_stored(path: Path) -> None:
    """Refuse a file of weights that is compressed: PyTorch compresses none, and a few bytes could fill the memory.

    Raises:
        ValueError: For such a file.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError):  # PyTorch will say so
        return
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"cannot read {path}: it is compressed, which PyTorch's files are not")


def check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive of models that would write outside its folder, or that becomes far larger than it is.

    Args:
        archive: The archive, of which only the directory is read.
        path: Its file, for messages and for its size.

    Raises:
        ValueError: For too many entries, one that would be written elsewhere, two of the same name, or a size that no
            compression of weights explains.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ValueError(f"{path} is no exported model: it holds {len(entries)} files")
    seen: set[tuple[str, ...]] = set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        outside = ".." in parts or PurePosixPath(entry.filename).is_absolute() or link
        if outside or re.search(r"[\\:\x00-\x1f]", entry.orig_filename):
            raise ValueError(f"{path} would write outside nnUNet_results: {entry.orig_filename[:200]!r}")
        if parts in seen:
            raise ValueError(f"{path} holds {entry.filename!r} twice")
        seen.add(parts)
    size = sum(entry.file_size for entry in entries)
    if size > MOST_COMPRESSED * path.stat().st_size + _LITTLE:
        raise ValueError(f"{path} is no exported model: its files would have {size / 2**30:.1f} GiB")


def extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Unpack an archive whose entries have been checked; none becomes larger than it says.

    Args:
        archive: The archive, after :func:`check_entries`.
        path: Its file, for messages.
        folder: Where it is unpacked.

    Raises:
        ValueError: For an archive that is damaged.
        DiskFullError: For one that is larger than the disk has room for.
    """
    size = sum(entry.file_size for entry in archive.infolist())
    if size > shutil.disk_usage(folder).free:
        raise DiskFullError(f"cannot write {folder.parent}: the disk is full, {path} needs {size / 2**30:.2g} GiB")
    try:
        archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        if is_full(error, folder):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
