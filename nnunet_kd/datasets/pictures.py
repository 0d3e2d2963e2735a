"""2-D pictures for the converters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_kd.writing import naming_full_disk


def read_picture(path: Path, mode: str) -> np.ndarray:
    """A picture as uint8.

    Args:
        path: PNG, JPEG or TIFF.
        mode: Pillow's: ``"L"`` gives ``(y, x)``, ``"RGB"`` ``(y, x, 3)``.

    Raises:
        ValueError: Where it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except Image.DecompressionBombError:
        raise ValueError(f"{path} claims more pixels than can be right") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}") from error


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as booleans ``(y, x)``.

    JPEG leaves grey around edges, so there the upper half of the greys is inside; anywhere else a mask has two values.

    Args:
        path: PNG, JPEG or TIFF.
        shape: ``(y, x)`` it must have.

    Raises:
        ValueError: Where it cannot be read, has another shape, or other values than black and white.
    """
    grey = read_picture(path, "L")
    if grey.shape != tuple(shape[:2]):
        raise ValueError(f"{path} has {grey.shape[1]} x {grey.shape[0]} pixels, its image {shape[1]} x {shape[0]}")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        inside: np.ndarray = grey > 127
        return inside
    values = set(np.unique(grey).tolist())
    if not (values <= {0, 1} or values <= {0, 255}):
        raise ValueError(f"{path} has the values {', '.join(map(str, sorted(values)[:5]))}..., expected are 0 and 255")
    return grey > 0


def write_picture(array: np.ndarray, path: Path) -> None:
    """uint8 ``(y, x)`` or ``(y, x, 3)`` as PNG.

    Raises:
        DiskFullError: Where there is no space for it.
    """
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(content, format="PNG")
    with naming_full_disk(path):
        path.write_bytes(content.getvalue())
