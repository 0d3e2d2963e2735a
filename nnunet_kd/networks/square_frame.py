"""Fitting images of any size into a vision transformer's square input, and its logits back onto their grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def size_in_square(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the height and width of an image in a square, shrunk with its aspect ratio if it is too large."""
    scale = min(1.0, side / max(size))
    height, width = (max(round(length * scale), 1) for length in size)
    return height, width


def to_square(images: Tensor, side: int) -> Tensor:
    """Centre images in a square of zeros; larger images are shrunk bilinearly, smaller ones keep their size.

    BrainSegDMIF, section 4.2, pads with black and shrinks larger images; here their aspect ratio is kept. nnU-Net also
    pads with zeros, which are the background if images are normalised within a mask.

    Shape:
        ``(B, C, height, width)`` to ``(B, C, side, side)``.
    """
    height, width = size_in_square((images.shape[2], images.shape[3]), side)
    if (height, width) != images.shape[2:]:
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def from_square(logits: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Undo :func:`to_square` for logits: cut out the images and resize them bilinearly to their own grid.

    Args:
        logits: Logits ``(B, K, rows, columns)`` that cover the square, on any grid.
        side: The side of the square in pixels.
        size: The height and width of the images.

    Returns:
        The logits on the grid of the images, ``(B, K, height, width)``.
    """
    if logits.shape[2:] != (side, side):
        logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    height, width = size_in_square(size, side)
    top, left = (side - height) // 2, (side - width) // 2
    logits = logits[:, :, top : top + height, left : left + width]
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)
