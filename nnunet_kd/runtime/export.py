"""nnU-Net's export, plane by plane: logits back to the grid of the image, labels, probabilities, crop and axes undone.

A plane of the image's grid is computed as soon as the planes of logits beside it are there, so that the logits of all
classes never exist on the grid of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .plans import Labels
from .preprocessing import Grid
from .resampling import Resampling, Taps

Sink = Callable[[np.ndarray], None]  # takes the probabilities of one plane, float32 (heads, y, x), in order


class LabelAssembly:
    """The labels of a case, filled from slabs of logits that arrive from the first plane to the last.

    Args:
        shape: The shape of the preprocessed image.
        grid: How its grid lies in the file.
        labels: The labels or regions.
        resampling: How logits are resampled to the grid of the file.
        probabilities: A function that takes the probabilities of every plane of the crop.
    """

    def __init__(
        self,
        shape: Sequence[int],
        grid: Grid,
        labels: Labels,
        resampling: Resampling,
        probabilities: Sink | None = None,
    ) -> None:
        self._labels = labels
        self._sink = probabilities
        kind = np.uint8 if labels.foreground < 255 else np.uint16
        self._whole = np.zeros(grid.whole, dtype=kind)  # in the order of the model's axes
        self._target = self._whole[grid.crop]
        self._backwards = grid.backwards
        target = grid.cropped if resampling.active else tuple(shape)
        orders = resampling.orders(grid.model_spacing, grid.cropped_spacing)
        self._depth, self._rows, self._columns = (
            Taps.of_axis(old, new, order) for old, new, order in zip(shape, target, orders, strict=True)
        )
        self._received = 0  # planes of logits so far
        self._finished = 0  # planes of labels so far
        self._kept: dict[int, np.ndarray] = {}  # planes of logits that the next planes of labels need

    def add(self, slab: np.ndarray) -> None:
        """Take the logits of the next planes, float32 ``(heads, planes, y, x)``, which can be changed afterwards."""
        first, self._received = self._received, self._received + slab.shape[1]

        def plane(number: int) -> np.ndarray:
            return slab[:, number - first] if number >= first else self._kept[number]

        while self._finished < len(self._target) and self._depth.upper[self._finished] < self._received:
            number = self._finished
            lower, upper = (plane(taps[number]) for taps in (self._depth.lower, self._depth.upper))
            self._finish_plane(number, lower, upper, self._depth.weight[number])
            self._finished += 1
        if self._finished < len(self._target):
            needed = range(self._depth.lower[self._finished], self._received)
            self._kept = {number: plane(number).copy() for number in needed}

    def result(self) -> np.ndarray:
        """Return the labels of the case on the grid of its file, ``(z, y, x)``."""
        assert self._finished == len(self._target), "logits are missing"
        labels: np.ndarray = self._whole.transpose(self._backwards)
        return labels

    def _finish_plane(self, number: int, lower: np.ndarray, upper: np.ndarray, weight: np.float32) -> None:
        """Resample the logits of a plane, ``(heads, y, x)`` on both sides of it, and reduce them to its labels."""
        heads: Iterable[np.ndarray] = (
            self._interpolate(*pair, weight) for pair in zip(lower, upper, strict=True)
        )  # one channel at a time
        if self._sink is not None:
            heads = np.stack(list(heads))
            self._sink(self._probabilities(heads))
        target = self._target[number]
        if self._labels.region_order is not None:
            for label, logits in zip(self._labels.region_order, heads, strict=True):
                target[logits > 0] = label  # a probability above one half
            return
        best: np.ndarray | None = None
        for label, logits in enumerate(heads):
            if best is None:
                best = logits.copy()
                continue
            target[logits > best] = label
            np.maximum(best, logits, out=best)

    def _interpolate(self, lower: np.ndarray, upper: np.ndarray, weight: np.float32) -> np.ndarray:
        """Return one channel of the logits of a plane on the grid of the file."""
        plane = lower if weight == 0 else lower + weight * (upper - lower)
        return _between(_between(plane, self._rows, 0), self._columns, 1)

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the sigmoid of regions or the softmax of labels."""
        if self._labels.region_order is not None:
            from scipy.special import expit

            probabilities: np.ndarray = expit(logits)
        else:
            probabilities = np.exp(logits - logits.max(0))
            probabilities /= probabilities.sum(0)
        return probabilities


def _between(plane: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Interpolate a plane along one of its axes."""
    if taps.is_identity:
        return plane
    lower: np.ndarray = plane.take(taps.lower, axis)
    if not taps.weight.any():
        return lower
    upper: np.ndarray = plane.take(taps.upper, axis)
    upper -= lower
    upper *= taps.weight[:, None] if axis == 0 else taps.weight
    upper += lower
    return upper
