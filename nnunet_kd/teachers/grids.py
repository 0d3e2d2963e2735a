"""Lay values on the grid of one preprocessing onto the grid of another, through the raw image that both come from.

nnU-Net's preprocessing transposes the axes of an image, crops it to its nonzero part and resamples it. Each step maps
every axis by itself and linearly, so the way from one preprocessed grid to another is one linear map per axis. The
values are therefore interpolated once and never exist on the grid of the raw image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from torch import Tensor

_SLAB = 2**24  # values; the size of a part that is interpolated at once
_OPPOSITE = {"R": "L", "A": "P", "S": "I"}


@dataclass(frozen=True)
class Grid:
    """The grid of a preprocessed case, and its place in the file of the raw image.

    All attributes have one entry per axis of the grid.

    Attributes:
        shape: The number of voxels.
        spacing: The planned distance of the voxels in mm, which decides whether nnU-Net interpolates along the axis.
        low: The first voxel inside the crop, in voxels of the raw image as the grid's reader shows it.
        cropped: The number of raw voxels inside the crop.
        whole: The number of raw voxels.
        axes: The axis of the file's array, whose axes are (z, y, x).
        flipped: Whether the reader has flipped this axis.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    low: tuple[int, ...]
    cropped: tuple[int, ...]
    whole: tuple[int, ...]
    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @classmethod
    def of(
        cls, shape: Sequence[int], properties: Mapping[str, Any], transpose: Sequence[int], spacing: Sequence[float]
    ) -> Grid:
        """Read the grid of a case from what nnU-Net notes about its preprocessing.

        Args:
            shape: The shape of the preprocessed case.
            properties: The properties of the case.
            transpose: ``transpose_forward`` of the plans.
            spacing: The spacing of the configuration; it has only two entries for 2-D configurations.
        """
        raw_spacing = [properties["spacing"][axis] for axis in transpose]
        axes, flipped = _storage(properties)
        return cls(
            tuple(int(side) for side in shape),
            tuple(float(one) for one in [*raw_spacing[: len(raw_spacing) - len(spacing)], *spacing]),
            tuple(int(low) for low, _ in properties["bbox_used_for_cropping"]),
            tuple(int(side) for side in properties["shape_after_cropping_and_before_resampling"]),
            tuple(int(side) for side in properties["shape_before_cropping"]),
            tuple(axes[axis] for axis in transpose),
            tuple(flipped[axis] for axis in transpose),
        )

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of the raw image in its file, ``(z, y, x)``."""
        return tuple(self.whole[self.axes.index(axis)] for axis in range(len(self.axes)))

    def positions(self, axis: int) -> np.ndarray:
        """Return where the voxels along an axis of the grid lie on the axis of the file, in its voxels."""
        step = self.cropped[axis] / self.shape[axis]
        seen = (np.arange(self.shape[axis]) + 0.5) * step - 0.5 + self.low[axis]
        return self.whole[axis] - 1 - seen if self.flipped[axis] else seen

    def indices(self, axis: int, positions: np.ndarray) -> np.ndarray:
        """Return where positions on an axis of the file lie along an axis of the grid, in its voxels."""
        return (self._inside(axis, positions) + 0.5) * (self.shape[axis] / self.cropped[axis]) - 0.5

    def covers(self, axis: int, positions: np.ndarray) -> np.ndarray:
        """Return which positions on an axis of the file lie in a voxel inside the crop."""
        inside = self._inside(axis, positions)
        covered: np.ndarray = (inside >= -0.5) & (inside < self.cropped[axis] - 0.5)
        return covered

    def _inside(self, axis: int, positions: np.ndarray) -> np.ndarray:
        """Return positions relative to the first voxel inside the crop."""
        seen = self.whole[axis] - 1 - positions if self.flipped[axis] else positions
        return seen - self.low[axis]


def _storage(properties: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
    """Return the axis of the file for each axis of the array that the reader returned, and which of them it flipped."""
    codes: Sequence[str] = ()
    if "reoriented_affine" in properties.get("nibabel_stuff", {}):
        codes = nibabel.aff2axcodes(properties["nibabel_stuff"]["original_affine"])
    elif "original_orientation" in properties.get("sitk_stuff", {}):
        codes = str(properties["sitk_stuff"]["original_orientation"])
    if not codes:
        return [0, 1, 2], [False] * 3
    # the axes of both readers' files are (x, y, z), those of their arrays (z, y, x)
    axes = [next(i for i, code in enumerate(codes) if code in (one, _OPPOSITE[one])) for one in "RAS"]
    flipped = [codes[axis] != one for axis, one in zip(axes, "RAS", strict=True)]
    return [2 - axis for axis in reversed(axes)], flipped[::-1]


def nearest_axis(source: Grid, target: Grid, resampling: Mapping[str, Any]) -> int | None:
    """Return the target's axis along which nnU-Net would take the nearest slice, because the voxels are long there.

    Args:
        source: The grid of the values.
        target: The grid on which they are wanted.
        resampling: The ``resampling_fn_probabilities_kwargs`` of the source's plans.
    """
    if resampling.get("order_z", 0) != 0:
        return None
    spacing = [source.spacing[source.axes.index(axis)] for axis in target.axes]
    separate, axis = determine_do_sep_z_and_axis(resampling.get("force_separate_z"), spacing, target.spacing)
    return int(axis) if separate and axis is not None else None


def resampled(
    values: Tensor, source: Grid, target: Grid, nearest: int | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Interpolate values linearly on another grid, slab by slab, with the alignment of nnU-Net's resampling.

    Voxel centres lie at whole numbers and the outer faces of both grids coincide, as in ``skimage.transform.resize``;
    beyond the outermost centres the values are constant.

    Args:
        values: The values ``(heads, *source.shape)``.
        source: The grid of the values.
        target: The grid on which they are wanted.
        nearest: The axis of the target along which the nearest values are taken.

    Yields:
        The part of the target's first axis, the values ``(heads, *part)`` in float32, and the mask ``part`` of the
        voxels whose place in the raw image lies inside the source's crop.
    """
    own = [source.axes.index(axis) for axis in target.axes]
    values = values.permute(0, *(axis + 1 for axis in own))
    positions = [target.positions(axis) for axis in range(len(own))]
    places = [source.indices(axis, where) for axis, where in zip(own, positions, strict=True)]
    covered = [torch.from_numpy(source.covers(axis, where)) for axis, where in zip(own, positions, strict=True)]
    weights = [_Weights.of(where, values.shape[axis + 1], axis == nearest) for axis, where in enumerate(places)]
    row = values.shape[0] * max(target.shape[1], values.shape[2]) * max(target.shape[2], values.shape[3])
    step = max(1, _SLAB // row)
    for first in range(0, target.shape[0], step):
        part = slice(first, min(first + step, target.shape[0]))
        slab = weights[0].part(part)(values, 1)
        for axis in (1, 2):
            slab = weights[axis](slab, axis + 1)
        yield part, slab, covered[0][part, None, None] & covered[1][:, None] & covered[2]


@dataclass(frozen=True)
class _Weights:
    """Interpolation along one axis: the lower neighbour of every value, the upper one, and the weight of the upper."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def of(cls, places: np.ndarray, size: int, nearest: bool) -> _Weights:
        inside = np.clip(places, 0, size - 1)
        if nearest:
            inside = np.floor(inside + 0.5)
        lower = np.floor(inside).astype(np.int64)
        upper = np.minimum(lower + 1, size - 1)
        return cls(*map(torch.from_numpy, (lower, upper, (inside - lower).astype(np.float32))))

    def part(self, part: slice) -> _Weights:
        return _Weights(self.lower[part], self.upper[part], self.weight[part])

    def __call__(self, values: Tensor, dim: int) -> Tensor:
        lower = values.index_select(dim, self.lower).float()
        if not self.weight.any():
            return lower
        upper = values.index_select(dim, self.upper).float()
        return torch.lerp(lower, upper, self.weight.view(-1, *[1] * (values.ndim - 1 - dim)))
