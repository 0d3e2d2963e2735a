"""Whether files are what they were: images that were cut off, of which readers do not say; digests."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import sys
import zlib
from pathlib import Path

_PART = 2**20  # bytes
_GZIP = b"\x1f\x8b"  # what its files begin with


def check_name(path: Path) -> None:
    """That SimpleITK can be given a path: it ends the whole process where Python could not decode a name.

    Raises:
        ValueError: Naming the path, and the variable that mends it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        mend = "rename it" if encoding == "utf-8" else "set PYTHONUTF8=1 for names in UTF-8"
        raise ValueError(f"cannot open {str(path)!r}: the name is not in {encoding}; {mend}") from None


def check_whole(path: Path) -> None:
    """That a NIfTI or gzip file is not cut off, and that SimpleITK can be given its path.

    SimpleITK, and so nnU-Net, reads such an image without a word, with zeros where there is nothing. Other formats'
    readers say it themselves. Whether a file is compressed is seen from its first bytes: SimpleITK reads a NIfTI file
    that is called ``.nii.gz`` and is not compressed.

    Raises:
        ValueError: Naming the file.
        OSError: If it cannot be opened.
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
        raise ValueError(f"cannot read {path}: it is cut off or damaged") from error
    if length < (_nifti_length(start) if nifti else 1):
        raise ValueError(f"cannot read {path}: it is {'cut off' if length else 'empty'}")


def is_compressed(path: Path) -> bool:
    """Whether a file begins as gzip's do, whatever it is called."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def is_whole(path: Path) -> bool:
    """Whether a file is there and, as far as :func:`check_whole` knows its format, not cut off."""
    try:
        check_whole(path)
    except (ValueError, OSError):
        return False
    return path.is_file()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _nifti_length(start: bytes) -> int:
    """Bytes a NIfTI file has by its header; of any other file at least a header."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", start)[0] if len(start) >= 348 else 0
        if size == 348:
            shape, bits = struct.unpack_from(f"{order}8h", start, 40), struct.unpack_from(f"{order}h", start, 72)[0]
            place = struct.unpack_from(f"{order}f", start, 108)[0]
            offset = int(place) if math.isfinite(place) else 2**63  # there is no such file
        elif size == 540 and len(start) >= 540:
            shape, bits = struct.unpack_from(f"{order}8q", start, 16), struct.unpack_from(f"{order}h", start, 14)[0]
            offset = int(struct.unpack_from(f"{order}q", start, 168)[0])
        else:
            continue
        voxels = math.prod(max(int(side), 1) for side in shape[1 : 1 + max(shape[0], 0)])
        return offset + voxels * int(bits) // 8
    return 348
