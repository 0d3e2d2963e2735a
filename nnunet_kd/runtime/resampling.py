"""nnU-Net's resampling, axis by axis, and therefore plane by plane where memory is short.

nnU-Net resamples with ``skimage.transform.resize``, which is SciPy's spline interpolation with repeated edges, and with
nearest neighbours along an axis of thick slices. Both are linear and treat each axis by itself, so that one small
matrix per axis does the same. Where nnU-Net then clips to the range of the image, so does this module.

SciPy is imported where something is resampled: its import takes longer than the prediction of a small case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_COLUMNS = 2**18  # columns per matrix product along the slowest axis, which bounds its memory


@dataclass(frozen=True)
class Resampling:
    """The settings of one resampling.

    Attributes:
        order: The order of the spline along an axis.
        order_z: The order of the spline along an axis of thick slices that is treated separately.
        separate_z: Whether an axis of thick slices is treated separately; ``None`` to decide by the voxel sizes.
        threshold: The ratio of the largest to the smallest voxel side above which slices are thick.
        active: Whether anything is resampled at all.
    """

    order: int
    order_z: int
    separate_z: bool | None
    threshold: float = 3.0
    active: bool = True

    def separate_axis(self, current: Sequence[float], new: Sequence[float]) -> int | None:
        """Return the axis of thick slices to treat separately, or ``None``.

        Args:
            current: The voxel size before resampling.
            new: The voxel size after resampling.
        """
        thick = None
        if self.separate_z:
            thick = current
        elif self.separate_z is None:
            thick = next((one for one in (current, new) if max(one) / min(one) > self.threshold), None)
        axes = [] if thick is None else [axis for axis, size in enumerate(thick) if max(thick) / size == 1]
        return axes[0] if len(axes) == 1 else None

    def orders(self, current: Sequence[float], new: Sequence[float]) -> list[int]:
        """Return the order of the spline along each axis."""
        separate = self.separate_axis(current, new)
        return [self.order_z if axis == separate else self.order for axis in range(3)]


NO_RESAMPLING = Resampling(0, 0, False, active=False)


def resampled_shape(shape: Sequence[int], current: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """Return the shape in voxels after resampling from one voxel size to another."""
    return tuple(round(old / size * count) for old, size, count in zip(current, new, shape, strict=True))


def resample_image(
    image: np.ndarray,
    shape: Sequence[int],
    resampling: Resampling,
    current: Sequence[float],
    new: Sequence[float],
) -> np.ndarray:
    """Resample one channel of an image as nnU-Net does.

    Args:
        image: The channel, float32 ``(z, y, x)``.
        shape: The shape after resampling.
        resampling: The settings.
        current: The voxel size before resampling, for the decision about thick slices.
        new: The voxel size after resampling.

    Returns:
        The resampled channel in float32; the given one if nothing changes.
    """
    if not resampling.active or tuple(shape) == image.shape:
        return image
    separate = resampling.separate_axis(current, new)
    front = 0 if separate is None else separate
    planes = np.moveaxis(image, front, 0)
    target = [shape[front], *(size for axis, size in enumerate(shape) if axis != front)]
    rows, columns = (_matrix(planes.shape[axis], target[axis], resampling.order) for axis in (1, 2))
    within = np.empty((planes.shape[0], *target[1:]), dtype=np.float32)
    for plane, out in zip(planes, within, strict=True):
        np.matmul(rows @ plane, columns.T, out=out)
        if separate is not None:  # slices are images of their own
            np.clip(out, plane.min(), plane.max(), out=out)
    if separate is None:
        resampled = _along_first(within, _matrix(planes.shape[0], target[0], resampling.order))
        np.clip(resampled, image.min(), image.max(), out=resampled)
    elif target[0] == planes.shape[0]:
        resampled = within
    elif resampling.order_z == 0:
        resampled = within[nearest(planes.shape[0], target[0])]
    else:
        resampled = _along_first(within, _matrix_between_slices(planes.shape[0], target[0], resampling.order_z))
    return np.ascontiguousarray(np.moveaxis(resampled, 0, front))


def _along_first(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    flat = image.reshape(len(image), -1)
    result = np.empty((len(matrix), flat.shape[1]), dtype=np.float32)
    for start in range(0, flat.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        result[:, part] = matrix @ flat[:, part]
    return result.reshape(len(matrix), *image.shape[1:])


@lru_cache(maxsize=12)
def _matrix(old: int, new: int, order: int) -> np.ndarray:
    """Return the matrix, ``(new, old)``, that resizes a line as ``skimage.transform.resize`` does in mode "edge"."""
    from scipy import ndimage

    factor = 1 / (old / new)  # as skimage computes it
    columns = [ndimage.zoom(unit, factor, order=order, mode="nearest", grid_mode=True) for unit in np.eye(old)]
    return np.stack(columns, axis=1).astype(np.float32)


@lru_cache(maxsize=12)
def _matrix_between_slices(old: int, new: int, order: int) -> np.ndarray:
    """Return the matrix, ``(new, old)``, with which nnU-Net interpolates between thick slices."""
    from scipy import ndimage

    places = old / new * (np.arange(new) + 0.5) - 0.5
    columns = [ndimage.map_coordinates(unit, places[None], order=order, mode="nearest") for unit in np.eye(old)]
    return np.stack(columns, axis=1).astype(np.float32)


def nearest(old: int, new: int) -> np.ndarray:
    """Return, for every place of a resized axis, the nearest place of the old one."""
    from scipy import ndimage

    places = old / new * (np.arange(new) + 0.5) - 0.5
    found = ndimage.map_coordinates(np.arange(old, dtype=float), places[None], order=0, mode="nearest")
    return np.asarray(found, dtype=np.intp)


@dataclass(frozen=True)
class Taps:
    """Linear or nearest interpolation along one axis: two places to read and the weight of the second.

    Attributes:
        lower: The first place to read, for every place of the new axis.
        upper: The second one.
        weight: The weight of the second one, from 0 to below 1, in float32.
        is_identity: Whether nothing changes along the axis.
    """

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    is_identity: bool

    @classmethod
    def of_axis(cls, old: int, new: int, order: int) -> Taps:
        """Return the taps of nnU-Net's resampling of order 0 or 1 from ``old`` to ``new`` voxels."""
        if old == new or order == 0:
            places = np.arange(old) if old == new else nearest(old, new)
            return cls(places, places, np.zeros(new, np.float32), old == new)
        places = np.clip(old / new * (np.arange(new) + 0.5) - 0.5, 0, old - 1)
        lower = np.floor(places).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, old - 1), (places - lower).astype(np.float32), False)
