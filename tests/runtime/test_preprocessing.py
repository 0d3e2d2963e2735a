"""Preprocessed images are those of nnU-Net's preprocessor."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask, crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_kd.runtime.plans import NORMALIZATIONS, read_pipeline
from nnunet_kd.runtime.preprocessing import nonzero_box, preprocess
from tests.runtime.made_plans import IMAGE, make_dataset_json, make_plans

LABELS = {"background": 0, "one": 1}


def both(channels, spacing, plans):
    """Return our preprocessed image and grid, and nnU-Net's image and properties."""
    dataset_json = make_dataset_json(len(channels), LABELS)
    pipeline = read_pipeline(plans, dataset_json, "made", Path("model"))
    before = channels.copy()
    image, grid = preprocess(list(channels), spacing, pipeline)
    np.testing.assert_array_equal(channels, before)  # the input is not changed
    manager = PlansManager(plans)
    theirs, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        channels.astype(np.float32),
        None,
        {"spacing": spacing},
        manager,
        manager.get_configuration("made"),
        dataset_json,
    )
    return image, grid, theirs, properties


def check(channels, spacing, plans):
    image, grid, theirs, properties = both(channels, spacing, plans)
    assert image.shape == theirs.shape and image.dtype == np.float32
    np.testing.assert_allclose(image, theirs, atol=1e-4 * max(1, theirs.std()))
    ours = grid.properties()
    for key in ("shape_before_cropping", "bbox_used_for_cropping", "shape_after_cropping_and_before_resampling"):
        assert np.array_equal(ours[key], properties[key])
    return image


def scan(shape, kind=np.int16, seed=0):
    """Return a smooth channel with outliers and a margin of zeros, like a CT in a frame."""
    generator = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(generator.normal(size=shape), 1.5) * 2000
    values[tuple(generator.integers(3, side - 3, 20) for side in shape)] = generator.normal(size=20) * 8000
    values[:2] = values[:, -3:] = values[:, :, :1] = 0
    return values.astype(kind)


@pytest.mark.parametrize("scheme", NORMALIZATIONS)
@pytest.mark.parametrize("mask", [False, True])
def test_normalisations(scheme, mask):
    channels = np.stack([scan((20, 24, 22), seed=seed) for seed in (0, 1)])
    if scheme == "RGBTo01Normalization":
        channels = np.abs(channels) % 256
    channels[:, 8:12, 8:12, 8:12] = 0  # a hole, which belongs to the mask
    image = check(channels, (2.0, 1.1, 1.1), make_plans([1.6, 1.0, 1.3], [scheme] * 2, [mask] * 2))
    assert image.std() > 0


def test_colours_out_of_range_are_refused():
    channels = np.full((1, 4, 4, 4), 300)
    plans = make_plans([1, 1, 1], ["RGBTo01Normalization"])
    pipeline = read_pipeline(plans, make_dataset_json(1, LABELS), "made", Path("model"))
    with pytest.raises(ValueError, match="colours must be from 0 to 255, got 300 to 300"):
        preprocess(list(channels), (1, 1, 1), pipeline)


@pytest.mark.parametrize(
    ("spacing", "model"),
    [
        ((1.2, 1.2, 1.2), [1.5, 1.5, 1.5]),
        ((1.5, 0.8, 0.8), [1.0, 1.0, 1.0]),
        ((5.0, 0.9, 0.9), [4.0, 1.1, 1.1]),  # thick slices in the image and the model
        ((5.0, 0.9, 0.9), [1.0, 1.0, 1.0]),  # in the image alone
        ((1.0, 1.0, 1.0), [5.0, 0.8, 0.8]),  # in the model alone
        ((0.9, 5.0, 0.9), [1.0, 4.0, 1.0]),
        ((0.9, 0.9, 5.0), [1.0, 1.0, 3.1]),
        ((0.9, 0.9, 5.0), [1.0, 1.0, 5.0]),
        ((0.3, 1.2, 1.2), [0.3, 1.0, 1.0]),  # two thick axes are none
        ((999.0, 1.0, 1.0), [0.7, 1.0]),  # a 2-D configuration
        ((3.0, 1.0, 1.0), [3.0, 1.0, 1.0]),  # nothing changes
    ],
)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_resampling(spacing, model, transpose):
    ordered = tuple(spacing[axis] for axis in np.argsort(transpose))  # of the file
    plans = make_plans(model, ["CTNormalization"], transpose=transpose)
    check(scan((13, 22, 17))[None], ordered, plans)


@pytest.mark.parametrize(
    "settings_",
    [
        {"order": 1},
        {"order": 2, "order_z": 1, "force_separate_z": True},
        {"order": 3, "order_z": 3},
        {"force_separate_z": False},
        {"separate_z_anisotropy_threshold": 9},
    ],
)
def test_other_settings_of_resampling(settings_):
    plans = make_plans([4.0, 1.1, 1.1], ["ZScoreNormalization"], resampling_fn_data_kwargs={**IMAGE, **settings_})
    check(scan((9, 22, 17))[None], (6.0, 0.9, 0.9), plans)


def test_pytorchs_resampling():
    settings_ = {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False}
    names = {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": settings_}
    seg = {"resampling_fn_seg": "resample_torch_fornnunet", "resampling_fn_seg_kwargs": {**settings_, "is_seg": True}}
    for model, spacing in (([4.0, 1.1, 1.1], (6.0, 0.9, 0.9)), ([1.2, 1.2, 1.2], (1.5, 0.9, 1.0))):
        plans = make_plans(model, ["ZScoreNormalization"], **names, **seg)
        check(scan((9, 22, 17))[None], spacing, plans)


def test_an_image_of_zeros():
    channels = np.zeros((1, 6, 7, 8), np.int16)
    check(channels, (1, 1, 1), make_plans([2, 1, 1], ["NoNormalization"]))
    image, grid, *_ = both(channels, (1, 1, 1), make_plans([1, 1, 1], ["ZScoreNormalization"], [True]))
    assert not image.any() and grid.cropped == (6, 7, 8)


@settings(deadline=None, max_examples=200)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=3, max_dims=3, max_side=5)))
def test_the_box_needs_no_holes_filled(region):
    """nnU-Net fills holes of the whole image before it crops; we do not, or of the crop only, which is the same."""
    box = nonzero_box([region])
    _, theirs, expected = crop_to_nonzero(region[None].astype(float))
    assert [list(ends) for ends in box] == expected
    crop = region[tuple(slice(*ends) for ends in box)]
    np.testing.assert_array_equal(create_nonzero_mask(crop[None]), theirs[0] == 0)
