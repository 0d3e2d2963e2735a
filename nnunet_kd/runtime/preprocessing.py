"""nnU-Net's preprocessing: axes, crop to the nonzero region, normalisation, resampling to the grid of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .normalization import normalize
from .plans import Pipeline
from .resampling import resample_image, resampled_shape


@dataclass(frozen=True)
class Grid:
    """How the grid of a preprocessed image lies in its file, in the order of the model's axes.

    Attributes:
        spacing: The voxel size of the file along ``z, y, x`` in mm.
        whole: The shape before cropping.
        box: For each axis, the first voxel of the crop and the one after the last.
        transpose: For every axis of the model, the axis of the file.
        model_spacing: The voxel size of the preprocessed image in mm.
        geometry: What the writer of the file needs.
    """

    spacing: tuple[float, ...]
    whole: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    transpose: tuple[int, ...]
    model_spacing: tuple[float, ...]
    geometry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cropped(self) -> tuple[int, ...]:
        """The shape after cropping."""
        return tuple(end - start for start, end in self.box)

    @property
    def crop(self) -> tuple[slice, ...]:
        """The index of the crop."""
        return tuple(slice(*ends) for ends in self.box)

    @property
    def cropped_spacing(self) -> tuple[float, ...]:
        """The voxel size of the crop in mm."""
        return tuple(self.spacing[axis] for axis in self.transpose)

    @property
    def backwards(self) -> tuple[int, ...]:
        """For every axis of the file, the axis of the model."""
        return tuple(int(axis) for axis in np.argsort(self.transpose))

    def properties(self) -> dict[str, Any]:
        """Return what nnU-Net stores beside probabilities, with which ``nnUNetv2_ensemble`` works."""
        return {
            **self.geometry,
            "spacing": list(self.spacing),
            "shape_before_cropping": self.whole,
            "bbox_used_for_cropping": [list(ends) for ends in self.box],
            "shape_after_cropping_and_before_resampling": self.cropped,
        }


def preprocess(
    channels: Sequence[np.ndarray],
    spacing: Sequence[float],
    pipeline: Pipeline,
    geometry: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, Grid]:
    """Preprocess a case as nnU-Net does.

    Args:
        channels: The channels, each ``(z, y, x)`` and of any type. A list is emptied channel by channel, which frees
            their memory.
        spacing: The voxel size along ``z, y, x`` in mm.
        pipeline: The settings of the model.
        geometry: What the writer of the segmentation needs.

    Returns:
        The image, float32 ``(channels, z, y, x)`` in the order of the model's axes, and its grid.

    Raises:
        ValueError: If colours are not from 0 to 255.
    """
    left = channels if isinstance(channels, list) else list(channels)
    left[:] = [channel.transpose(pipeline.transpose) for channel in left]
    box = nonzero_box(left)
    model = pipeline.spacing
    ordered = tuple(float(spacing[axis]) for axis in pipeline.transpose)
    model = (ordered[0], *model) if len(model) == 2 else model
    grid = Grid(tuple(map(float, spacing)), left[0].shape, box, pipeline.transpose, model, dict(geometry or {}))
    shape = grid.cropped
    if pipeline.image_resampling.active:
        shape = resampled_shape(grid.cropped, ordered, model)
    mask = None
    if any(one.inside_mask and one.scheme == "ZScoreNormalization" for one in pipeline.normalizations):
        mask = _filled([channel[grid.crop] for channel in left])
    image = np.empty((len(left), *shape), dtype=np.float32)
    for number, normalization in enumerate(pipeline.normalizations[: len(left)]):
        channel = np.array(left.pop(0)[grid.crop], dtype=np.float32, order="C")
        normalize(channel, normalization, mask)
        image[number] = resample_image(channel, shape, pipeline.image_resampling, ordered, model)
    return image, grid


def nonzero_box(channels: Sequence[np.ndarray]) -> tuple[tuple[int, int], ...]:
    """Return the smallest box with all voxels that are nonzero in any channel; the whole grid if there are none.

    nnU-Net first fills holes in the nonzero region, which does not change its box.
    """
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.zeros(channels[0].shape[axis], dtype=bool)
        for channel in channels:
            used |= channel.any(axis=others)
        places = np.flatnonzero(used)
        ends.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(used)))
    return tuple(ends)


def _filled(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the nonzero region of all channels together, without holes."""
    from scipy import ndimage

    mask: np.ndarray = channels[0] != 0
    for channel in channels[1:]:
        mask |= channel != 0
    return np.asarray(ndimage.binary_fill_holes(mask))
