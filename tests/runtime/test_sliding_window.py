"""The window visits nnU-Net's places with nnU-Net's weights, and holds no more logits than one window is deep."""

import tracemalloc

import numpy as np
import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from scipy import ndimage

from nnunet_kd.runtime.export import LabelAssembly
from nnunet_kd.runtime.plans import Labels
from nnunet_kd.runtime.preprocessing import Grid
from nnunet_kd.runtime.resampling import Resampling
from nnunet_kd.runtime.sliding_window import SlidingWindow, gaussian_weights, window_starts


def test_windows_begin_where_nnunets_do():
    generator = np.random.default_rng(0)
    for _ in range(300):
        side = int(generator.integers(1, 40))
        size = side + int(generator.integers(0, 120))
        step = float(generator.choice([0.1, 0.3, 0.5, 0.77, 1.0]))
        assert window_starts(size, side, step) == compute_steps_for_sliding_window((size,), (side,), step)[0]


@pytest.mark.parametrize("patch", [(8, 24, 20), (96, 16, 16), (33, 40)])
def test_weights_are_nnunets(patch):
    expected = compute_gaussian(patch, 1 / 8, 10, torch.float32, torch.device("cpu")).numpy()
    np.testing.assert_allclose(gaussian_weights(patch), expected, rtol=1e-5)


@pytest.mark.parametrize("patch", [(8, 24, 20), (1, 2, 3), (128, 128, 80), (40, 56, 40), (512, 511), (7, 9, 300)])
def test_weights_are_scipys_to_the_last_bit(patch):
    centre = np.zeros(patch)
    centre[tuple(side // 2 for side in patch)] = 1
    filtered = ndimage.gaussian_filter(centre, [side / 8 for side in patch], mode="constant")
    filtered = (filtered * (10 / filtered.max())).astype(np.float32)
    filtered[filtered == 0] = filtered[filtered > 0].min()
    np.testing.assert_array_equal(gaussian_weights(patch), filtered)


@pytest.mark.parametrize("shape", [(37, 30, 41), (5, 30, 9), (16, 12, 20), (1, 1, 1), (90, 12, 20)])
@pytest.mark.parametrize("patch", [(16, 12, 20), (12, 20)])
def test_constant_logits_stay_constant(shape, patch):
    """Every voxel is visited, also those of images that are smaller than the window, and planes come in order."""
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    window = SlidingWindow(patch, 2, 0.5)
    found = np.concatenate([slab.copy() for slab in window.slabs(image, lambda patch: 3 * patch - 1)], axis=1)
    np.testing.assert_allclose(found, 3 * image - 1, atol=1e-4)


def _peak(depth, heads=12):
    """Return the peak of memory in bytes while a volume is labelled, and the size of image and labels."""
    image = np.zeros((1, depth, 48, 48), np.float32)
    whole = (2 * depth, 64, 64)
    grid = Grid((0.5, 0.75, 0.75), whole, tuple((0, size) for size in whole), (0, 1, 2), (1.0, 1.0, 1.0))
    labels = Labels({}, heads, None, heads - 1)
    window = SlidingWindow((16, 32, 32), heads, 0.5)
    tracemalloc.start()
    assembly = LabelAssembly(image.shape[1:], grid, labels, Resampling(1, 0, None))
    for slab in window.slabs(image, lambda patch: np.repeat(patch, heads, axis=0)):
        assembly.add(slab)
    assert assembly.result().shape == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, assembly.result().nbytes


def test_memory_does_not_grow_with_depth():
    (small, few), (large, many) = _peak(64), _peak(256)
    assert large - small <= 1.05 * (many - few)
    assert small < 64 * 48 * 48 * 12 * 4  # the logits of the whole volume
