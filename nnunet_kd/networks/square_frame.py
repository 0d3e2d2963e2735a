"""Images of any size in the square a vision transformer is built for, and its answers back on their grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def size_in_square(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns an image takes in a square: its own, or where one is too many, both shrunk alike."""
    scale = min(1.0, side / max(size))
    height, width = (max(round(length * scale), 1) for length in size)
    return height, width


def to_square(images: Tensor, side: int) -> Tensor:
    """Images in the middle of a square; larger ones shrunk bilinearly, smaller ones not enlarged, zeros around.

    BrainSegDMIF, section 4.2, pads with black and shrinks what is too large; its aspect ratio is kept here. nnU-Net
    pads with zeros, too: the background where images are normalised within a mask.

    Shape:
        ``(B, C, height, width)`` to ``(B, C, side, side)``.
    """
    height, width = size_in_square((images.shape[2], images.shape[3]), side)
    if (height, width) != images.shape[2:]:
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def from_square(logits: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """What :func:`to_square` undoes: logits of the square, on any grid, at the images' rows and columns.

    Args:
        logits: ``(B, K, rows, columns)``, covering the square.
        side: Of the square, in the pixels images have there.
        size: Height and width of the images.

    Returns:
        ``(B, K, height, width)``, resized bilinearly.
    """
    if logits.shape[2:] != (side, side):
        logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    height, width = size_in_square(size, side)
    top, left = (side - height) // 2, (side - width) // 2
    logits = logits[:, :, top : top + height, left : left + width]
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)
