"""Compare the positions of images in space, from the direction and origin that nnU-Net's readers return."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Corners = np.ndarray[Any, Any]


def corners(properties: Mapping[str, Any], shape: Sequence[int]) -> Corners | None:
    """Return the centres of the corner voxels in mm, ``(corners, axes)``, or ``None`` if the file has no position.

    Args:
        properties: The properties that nnU-Net's reader returns.
        shape: The shape of the image, ``(z, y, x)`` or ``(y, x)``.
    """
    if "sitk_stuff" in properties:
        found = properties["sitk_stuff"]
        origin = np.asarray(found["origin"])
        steps = np.reshape(found["direction"], (len(origin), len(origin))) * np.asarray(found["spacing"])
    elif "nibabel_stuff" in properties:
        found = properties["nibabel_stuff"]
        affine = np.asarray(found.get("reoriented_affine", found["original_affine"]))
        origin, steps = affine[:3, 3], affine[:3, :3]
    else:
        return None
    if len(origin) != len(shape):
        return None
    indices = np.array(list(itertools.product(*((0, size - 1) for size in reversed(shape)))))
    return np.asarray(origin + indices @ steps.T)


def apart(one: Corners | None, other: Corners | None, spacing: Sequence[float]) -> bool:
    """Return whether voxels of equal index lie more than half a voxel apart; false if a position is unknown."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(np.linalg.norm(one - other, axis=1).max() > 0.5 * min(spacing))
