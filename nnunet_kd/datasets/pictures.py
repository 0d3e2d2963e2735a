"""Read 2-D pictures and masks so that nothing is lost unnoticed, and write them as PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.storage.writing import naming_full_disk

_DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # of 16 and 32 bits
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr")


def read_picture(path: Path, mode: str) -> np.ndarray:
    """Return a picture as uint8; a grey picture of 16 bits keeps its values as uint16.

    Args:
        path: A PNG, JPEG or TIFF file.
        mode: Pillow's mode: ``"L"`` gives ``(y, x)``, ``"RGB"`` gives ``(y, x, 3)``.

    Raises:
        ValueError: If the file cannot be read, or Pillow would change it without a word: colours of more than 8 bits
            or of another kind than RGB, transparency, several pictures in one file.
    """
    try:
        with Image.open(path) as picture:
            fault = _fault(picture, mode)
            if fault is None and picture.mode in _DEEP_GREY:
                return np.asarray(picture).astype(np.uint16)
            if fault is None:
                return np.asarray((picture.convert("RGB") if _has_alpha(picture) else picture).convert(mode))
    except Image.DecompressionBombError:
        raise ValueError(f"{path} claims more pixels than can be right") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from error
    raise ValueError(f"{path} {fault}")


def _fault(picture: Image.Image, mode: str) -> str | None:
    """Return what Pillow would lose of a picture, and what to do about it; ``None`` if it loses nothing."""
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format != "MPO":  # a camera's JPEG, with previews
        return f"holds {count} pictures, but one is expected: save each in a file of its own"
    if picture.mode in _DEEP_GREY and mode == "L":
        values = np.asarray(picture)
        low, high = int(values.min()), int(values.max())
        whole = low >= 0 and high < 2**16
        return None if whole else f"has values from {low} to {high}, but 0 to 65535 are expected: scale it"
    if picture.mode in _DEEP_GREY or ";16" in str(getattr(picture, "tile", "")):  # how its pixels are packed
        return "has more than 8 bits per channel, and nnU-Net reads colours of 8 bits: scale it to 8 bits"
    if picture.mode not in _PLAIN:
        return f"has pixels of the kind {picture.mode}, but RGB or grey is expected: convert it"
    if _has_alpha(picture) and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        return "is partly transparent, but an opaque picture is expected: save it without transparency (alpha)"
    return None


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask as booleans ``(y, x)``.

    JPEG leaves grey around edges, so its upper half of the greys is inside. In every other format a mask has two
    values: black and white, or black and one colour of a palette.

    Args:
        path: A PNG, JPEG or TIFF file.
        shape: The shape ``(y, x)`` that the mask must have; further axes are ignored.

    Raises:
        ValueError: If the file cannot be read, or has another shape or other values than these.
    """
    grey = read_picture(path, "L")
    if grey.shape != tuple(shape[:2]):
        raise ValueError(f"{path} has {grey.shape[1]} x {grey.shape[0]} pixels, its image {shape[1]} x {shape[0]}")
    with Image.open(path) as picture:
        jpeg, palette = picture.format in ("JPEG", "MPO"), picture.mode == "P"
    inside: np.ndarray
    if jpeg:
        inside = grey > 127
        return inside
    if palette:
        colours = read_picture(path, "RGB")
        inside = np.asarray((colours > 0).any(-1))
        if not inside.all() and len(np.unique(colours[inside], axis=0)) <= 1:
            return inside
    values = set(np.unique(grey).tolist())
    if not any(values <= {0, white} for white in (1, 255, 65535)):
        raise ValueError(f"{path} has the values {', '.join(map(str, sorted(values)[:5]))}..., expected are 0 and 255")
    return grey > 0


def write_picture(array: np.ndarray, path: Path) -> None:
    """Write a picture as PNG.

    Args:
        array: uint8 ``(y, x)`` or ``(y, x, 3)``, or uint16 ``(y, x)``.
        path: The file to write.

    Raises:
        DiskFullError: If there is no space for it.
    """
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(content, format="PNG")
    with naming_full_disk(path):
        path.write_bytes(content.getvalue())


def write_colour_case(image: Path, mask: Path, image_path: Path, label_path: Path) -> None:
    """Write a colour picture and its mask as PNG; the label is 1 inside the mask.

    Raises:
        ValueError: If a file cannot be read, or the two have different sizes.
        DiskFullError: If there is no space for them.
    """
    picture = read_picture(image, "RGB")
    inside = read_mask(mask, picture.shape)
    write_picture(picture, image_path)
    write_picture(inside.astype(np.uint8), label_path)
