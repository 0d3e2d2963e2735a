"""Check and unpack untrusted zip archives, which must not write outside their folder or unpack to an excessive size."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from nnunet_kd.storage.writing import DiskFullError, is_full

MOST_FILES = 10_000
# The largest ratio of the unpacked to the packed size. Weights hardly compress; text compresses about twentyfold.
MOST_COMPRESSED = 100
_LITTLE = 2**24  # bytes; smaller contents are accepted at any ratio


def check_stored(path: Path) -> None:
    """Refuse a compressed file of weights: PyTorch never compresses, and a small file could fill the memory.

    Raises:
        ValueError: If the file is compressed.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError):  # PyTorch reports the error when it reads the file
        return
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"cannot read {path}: it is compressed, which files written by PyTorch are not")


def check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive of a model that would write outside its folder, or unpack to an excessive size.

    Args:
        archive: The archive, of which only the directory is read.
        path: The file of the archive, for messages and for its size.

    Raises:
        ValueError: If the archive has too many entries, an entry would be written outside its folder, two entries have
            the same name, or the unpacked size cannot be that of compressed weights.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ValueError(f"{path} is not an exported model: it contains {len(entries)} files")
    seen: set[tuple[str, ...]] = set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        outside = ".." in parts or PurePosixPath(entry.filename).is_absolute() or link
        if outside or re.search(r"[\\:\x00-\x1f]", entry.orig_filename):
            raise ValueError(f"{path} would write outside nnUNet_results: {entry.orig_filename[:200]!r}")
        if parts in seen:
            raise ValueError(f"{path} contains {entry.filename!r} twice")
        seen.add(parts)
    size = sum(entry.file_size for entry in entries)
    if size > MOST_COMPRESSED * path.stat().st_size + _LITTLE:
        raise ValueError(f"{path} is not an exported model: its files would take {size / 2**30:.1f} GiB")


def extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Unpack an archive whose entries have been checked; no file grows beyond its declared size.

    Args:
        archive: The archive, after :func:`check_entries`.
        path: The file of the archive, for messages.
        folder: The folder into which it is unpacked.

    Raises:
        ValueError: If the archive is damaged.
        DiskFullError: If the unpacked files do not fit onto the disk.
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
