"""Checks of files: truncated images, which readers do not report, unreadable names, and digests."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import sys
import zlib
from pathlib import Path

_PART = 2**20  # bytes
_GZIP = b"\x1f\x8b"  # the first bytes of a gzip file


def check_name(path: Path) -> None:
    """Refuse a path that Python could not decode, because SimpleITK would terminate the whole process.

    Raises:
        ValueError: If the path cannot be encoded; the message says how to correct it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        fix = "rename it" if encoding == "utf-8" else "set PYTHONUTF8=1 for names in UTF-8"
        raise ValueError(f"cannot open {str(path)!r}: the name is not in {encoding}; {fix}") from None


def check_whole(path: Path) -> None:
    """Refuse a truncated NIfTI or gzip file, or a path that SimpleITK cannot open.

    SimpleITK, and therefore nnU-Net, reads a truncated image without a warning and fills the missing part with zeros.
    The readers of other formats report the error themselves. The first bytes decide whether a file is compressed,
    because SimpleITK also reads uncompressed NIfTI files that are called ``.nii.gz``.

    Raises:
        ValueError: If the file is truncated, damaged or wrongly named; the message names it.
        OSError: If the file cannot be opened.
    """
    check_name(path)
    name = path.name.lower()
    nifti = name.endswith((".nii", ".nii.gz"))
    if not nifti and not name.endswith(".gz"):
        return
    packed = is_compressed(path)
    if packed and name.endswith(".nii"):
        raise ValueError(f"cannot read {path}: it is compressed, so its name must end in .nii.gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(_PART)
            length = len(start)
            while part := file.read(_PART):
                length += len(part)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: it is truncated or damaged") from error
    if length < (_nifti_length(start) if nifti else 1):
        raise ValueError(f"cannot read {path}: it is {'truncated' if length else 'empty'}")


def is_compressed(path: Path) -> bool:
    """Return whether the first bytes of a file are those of gzip, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def is_whole(path: Path) -> bool:
    """Return whether a file exists and passes :func:`check_whole`, which detects truncation in known formats."""
    try:
        check_whole(path)
    except (ValueError, OSError):
        return False
    return path.is_file()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Compute the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _nifti_length(start: bytes) -> int:
    """Return the length in bytes that a NIfTI header promises, or the length of a header if the file has none."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", start)[0] if len(start) >= 348 else 0
        if size == 348:
            shape, bits = struct.unpack_from(f"{order}8h", start, 40), struct.unpack_from(f"{order}h", start, 72)[0]
            place = struct.unpack_from(f"{order}f", start, 108)[0]
            offset = int(place) if math.isfinite(place) else 2**63  # larger than any file, so it is refused
        elif size == 540 and len(start) >= 540:
            shape, bits = struct.unpack_from(f"{order}8q", start, 16), struct.unpack_from(f"{order}h", start, 14)[0]
            offset = int(struct.unpack_from(f"{order}q", start, 168)[0])
        else:
            continue
        voxels = math.prod(max(int(side), 1) for side in shape[1 : 1 + max(shape[0], 0)])
        return offset + voxels * int(bits) // 8
    return 348
