"""nnU-Net's sliding window, walked along the slowest axis so that only one window's depth of logits is in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Progress = Callable[[Iterable[Any], int], Iterable[Any]]

Predict = Callable[[np.ndarray], np.ndarray]  # (channels, *patch) -> (heads, *patch)


class SlidingWindow:
    """A window that visits every part of an image and sums logits with Gaussian weights.

    Args:
        patch: The size of the window in voxels, ``(z, y, x)``, or ``(y, x)`` for slices.
        heads: The number of channels of the logits.
        step_size: The step in windows, above 0 and at most 1.
    """

    def __init__(self, patch: Sequence[int], heads: int, step_size: float) -> None:
        self._flat = len(patch) == 2
        self._patch = (1, *patch) if self._flat else tuple(patch)
        self._heads = heads
        self._step_size = step_size
        self._weights = gaussian_weights(patch).reshape(self._patch)

    def starts(self, shape: Sequence[int]) -> list[list[int]]:
        """Return the first voxels of the windows along each axis of an image, which is padded if it is smaller."""
        return [
            list(range(size)) if self._flat and axis == 0 else window_starts(max(size, side), side, self._step_size)
            for axis, (size, side) in enumerate(zip(shape, self._patch, strict=True))
        ]

    def windows(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the first voxel of every window of an image with this shape, ``(z, y, x)``."""
        return list(itertools.product(*self.starts(shape)))

    def patch(self, image: np.ndarray, window: Sequence[int]) -> np.ndarray:
        """Return the patch ``(channels, *patch)`` of an image at a window, with zeros around a smaller image."""
        return self._patch_at(image, window, self._padding(image.shape[1:])[0])

    def slabs(
        self, image: np.ndarray, predict: Predict, progress: Progress = lambda work, _: work
    ) -> Iterator[np.ndarray]:
        """Yield the logits of an image from the first plane to the last, as soon as no further window touches them.

        Args:
            image: The preprocessed image, float32 ``(channels, z, y, x)``.
            predict: A function that returns the logits of a patch.
            progress: A function that wraps the windows to show progress.

        Yields:
            The logits of the next planes, float32 ``(heads, planes, y, x)``. They are valid until the next slab.
        """
        shape = image.shape[1:]
        before, padded = self._padding(shape)
        rows, columns = (slice(first, first + size) for first, size in zip(before[1:], shape[1:], strict=True))
        starts = self.starts(shape)
        total = np.zeros((self._heads, self._patch[0], *padded[1:]), dtype=np.float32)
        weights = np.zeros(total.shape[1:], dtype=np.float32)
        windows = progress(self.windows(shape), math.prod(map(len, starts)))
        following = dict(zip(starts[0], [*starts[0][1:], padded[0]], strict=True))
        in_plane = len(starts[1]) * len(starts[2])
        for number, window in enumerate(windows, 1):
            logits = predict(self._patch_at(image, window, before))
            y, x = (slice(first, first + side) for first, side in zip(window[1:], self._patch[1:], strict=True))
            weights[:, y, x] += self._weights
            for head, values in zip(total, logits, strict=True):  # head by head, so that the product stays small
                head[:, y, x] += self._weights * values.reshape(self._patch)
            if number % in_plane:
                continue
            first, after = window[0], following[window[0]]
            done = after - first
            real = slice(max(before[0] - first, 0), min(before[0] + shape[0] - first, done))
            if real.start < real.stop:
                slab = total[:, real]
                slab /= weights[real]
                yield slab[:, :, rows, columns]
            _shift(weights, done)
            for head in total:
                _shift(head, done)

    def _padding(self, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the voxels that nnU-Net adds before each axis of a smaller image, and the shape with those behind."""
        padded = [max(size, side) for size, side in zip(shape, self._patch, strict=True)]
        return [(large - size) // 2 for large, size in zip(padded, shape, strict=True)], padded

    def _patch_at(self, image: np.ndarray, window: Sequence[int], before: Sequence[int]) -> np.ndarray:
        """Return a patch of the image, with zeros around the image where it is smaller than the window."""
        starts = [first - offset for first, offset in zip(window, before, strict=True)]
        z, y, x = (slice(max(first, 0), first + side) for first, side in zip(starts, self._patch, strict=True))
        found = image[:, z, y, x]
        if found.shape[1:] != self._patch:
            patch = np.zeros((len(image), *self._patch), dtype=np.float32)
            firsts = [max(-first, 0) for first in starts]
            z, y, x = (slice(first, first + size) for first, size in zip(firsts, found.shape[1:], strict=True))
            patch[:, z, y, x] = found
            found = patch
        return found[:, 0] if self._flat else found


def _shift(planes: np.ndarray, done: int) -> None:
    """Move planes to the front, in place, and zeros to the end."""
    left = len(planes) - done
    if left > 0:
        planes[:left] = planes[done:]
    planes[max(left, 0) :] = 0


def window_starts(size: int, side: int, step_size: float) -> list[int]:
    """Return the first voxels of nnU-Net's windows along one axis: equal steps of at most ``step_size`` windows."""
    count = math.ceil((size - side) / (side * step_size)) + 1
    step = (size - side) / (count - 1) if count > 1 else 0.0
    return [int(np.round(step * number)) for number in range(count)]


def gaussian_weights(patch: Sequence[int]) -> np.ndarray:
    """Return nnU-Net's weights of a patch: a Gaussian around the centre, at most 10 and never 0.

    nnU-Net filters a patch that is 1 in its centre with ``scipy.ndimage.gaussian_filter``, which is the product of one
    line per axis. It is computed here without SciPy, whose import takes longer than the prediction of a small case.
    """
    weights: np.ndarray = np.ones(())
    for side in patch:
        weights = weights[..., None] * _gaussian_line(side)
    weights = (weights * (10 / weights.max())).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def _gaussian_line(side: int) -> np.ndarray:
    """Return SciPy's Gaussian with a deviation of an eighth of a line around the centre of the line, float64."""
    deviation = side / 8
    radius = int(4 * deviation + 0.5)  # SciPy cuts it off there
    kernel = np.exp(-0.5 / (deviation * deviation) * np.arange(-radius, radius + 1) ** 2)
    kernel = kernel / kernel.sum()
    places = np.arange(side) - side // 2 + radius
    inside = (places >= 0) & (places < len(kernel))
    return np.where(inside, kernel[np.clip(places, 0, len(kernel) - 1)], 0.0)
