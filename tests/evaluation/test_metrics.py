"""Metrics are compared with known results and with a brute-force computation of all pairwise distances."""

import math

import numpy as np
import pytest

from nnunet_kd.evaluation.metrics import METRICS, OVERLAP, SURFACE, overlap_metrics, surface_metrics
from tests.evaluation.brute_force import brute_force


def box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def test_overlap_of_known_boxes():
    reference, prediction = box((4, 10, 10), (0, 0, 0), (2, 10, 10)), box((4, 10, 10), (1, 0, 0), (4, 10, 10))
    metrics = overlap_metrics(reference, prediction)
    assert metrics == {
        "dice": 200 / 500,
        "iou": 100 / 400,
        "precision": 100 / 300,
        "sensitivity": 100 / 200,
        "specificity": 0 / 200,
        "accuracy": 100 / 400,
        "volume_difference": 100 / 200,
    }
    assert set(METRICS) == {*OVERLAP, *SURFACE}


def test_invalid_voxels_do_not_count():
    reference, prediction = box((4, 4), (0, 0), (2, 4)), box((4, 4), (1, 0), (3, 4))
    valid = box((4, 4), (0, 0), (2, 4))
    assert overlap_metrics(reference, prediction, valid)["dice"] == 2 * 4 / 12
    everywhere = overlap_metrics(reference[valid], prediction[valid])
    np.testing.assert_equal(overlap_metrics(reference, prediction, valid), everywhere)
    assert surface_metrics(reference, prediction, (1, 1), 0.5, valid) == surface_metrics(
        reference, prediction & valid, (1, 1), 0.5
    )


@pytest.mark.parametrize(("axis", "expected"), [(0, 2 * 5.0), (1, 2 * 0.8), (2, 2 * 1.3)])
def test_the_distance_of_a_shifted_slab_is_its_shift_in_mm(axis, expected):
    """The slabs span the whole image, so that every surface voxel moves by the same distance."""
    spacing, shape = (5.0, 0.8, 1.3), (12, 12, 12)
    start, stop = [0, 0, 0], [12, 12, 12]
    start[axis], stop[axis] = 4, 5
    reference = box(shape, start, stop)
    prediction = np.roll(reference, 2, axis)
    metrics = surface_metrics(reference, prediction, spacing, tolerance=expected - 0.01)
    assert metrics["hd95"] == pytest.approx(expected, rel=1e-6) and metrics["nsd"] == 0
    assert surface_metrics(reference, prediction, spacing, tolerance=expected + 0.01)["nsd"] == 1


@pytest.mark.parametrize("width", [0.3, 0.8, 1.0, 1.0000001192, 1.1, 1.2])
def test_a_distance_of_the_tolerance_is_within_it(width):
    """This holds in spite of the rounding of the spacing to single precision."""
    reference, prediction = np.zeros((2, 6, 5, 5), dtype=bool)
    reference[1:4], prediction[2:5] = True, True
    assert surface_metrics(reference, prediction, (width, 1, 1), tolerance=width)["nsd"] == 1
    assert surface_metrics(reference, prediction, (width, 1, 1), tolerance=0.999 * width)["nsd"] < 1


def test_equal_masks():
    mask = box((6, 7, 8), (1, 2, 3), (4, 5, 6))
    assert surface_metrics(mask, mask, (3, 1, 1)) == {"hd95": 0, "nsd": 1}
    assert overlap_metrics(mask, mask)["dice"] == 1 and overlap_metrics(mask, mask)["volume_difference"] == 0


@pytest.mark.parametrize("spacing", [(1, 1, 1), (5.0, 0.8, 1.3)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_against_brute_force(spacing, seed):
    """The shapes are blobs, some of which touch the border."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    noise = gaussian_filter(generator.standard_normal((9, 14, 11)), 1.5)
    other = noise + 0.6 * gaussian_filter(generator.standard_normal(noise.shape), 1.5)
    reference, prediction = noise > noise.std() / 2, other > other.std() / 2
    assert reference[0].any() or reference[:, 0].any()
    for tolerance in (0.5, 1.0, 3.0):
        hd95, nsd = brute_force(reference, prediction, spacing, tolerance)
        metrics = surface_metrics(reference, prediction, spacing, tolerance)
        assert metrics["hd95"] == pytest.approx(hd95, rel=1e-6) and metrics["nsd"] == pytest.approx(nsd, abs=1e-12)


def test_two_dimensions():
    generator = np.random.default_rng(0)
    reference, prediction = generator.random((15, 12)) > 0.6, generator.random((15, 12)) > 0.6
    hd95, nsd = brute_force(reference, prediction, (0.7, 2), 1)
    metrics = surface_metrics(reference, prediction, (0.7, 2))
    assert metrics["hd95"] == pytest.approx(hd95, rel=1e-6) and metrics["nsd"] == pytest.approx(nsd)


def test_touching_the_border_is_a_surface():
    """The surfaces of a full image and of one without its border are one voxel apart."""
    full, inner = np.ones((7, 7, 7), bool), box((7, 7, 7), (1, 1, 1), (6, 6, 6))
    metrics = surface_metrics(full, inner, (1, 1, 1), 1.0)
    hd95, nsd = brute_force(full, inner, (1, 1, 1), 1.0)
    assert (metrics["hd95"], metrics["nsd"]) == (pytest.approx(hd95), pytest.approx(nsd))
    assert metrics["nsd"] < 1  # edges and corners are further than 1 mm


@pytest.mark.parametrize("has_reference", [True, False])
def test_one_of_two_masks_is_empty(has_reference):
    mask, empty = box((4, 5, 6), (1, 1, 1), (2, 2, 2)), np.zeros((4, 5, 6), bool)
    pair = (mask, empty) if has_reference else (empty, mask)
    overlap, surface = overlap_metrics(*pair), surface_metrics(*pair, (3, 1, 2))
    assert overlap["dice"] == overlap["iou"] == surface["nsd"] == 0
    assert surface["hd95"] == pytest.approx(math.sqrt(12**2 + 5**2 + 12**2))
    assert math.isnan(overlap["precision"]) == has_reference
    assert math.isnan(overlap["sensitivity"]) == (not has_reference)
    assert math.isnan(overlap["volume_difference"]) == (not has_reference)


def test_both_masks_are_empty():
    empty = np.zeros((4, 5, 6), bool)
    metrics = {**overlap_metrics(empty, empty), **surface_metrics(empty, empty, (1, 1, 1))}
    assert metrics.pop("specificity") == metrics.pop("accuracy") == 1
    assert all(math.isnan(value) for value in metrics.values())
