"""The way from one preprocessed grid to another, against nnU-Net's own steps through the raw image."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_kd.teachers.grids import Grid, nearest_axis, resampled

WHOLE = (31, 26, 22)  # voxels of the raw image, as it lies in its file
SPACING = (1.0, 1.5, 2.0)


def grid(transpose=(0, 1, 2), crop=((0, 31), (0, 26), (0, 22)), spacing=(1.0, 1.5, 2.0)):
    """Return the grid that nnU-Net's preprocessing makes with this axis order, crop and spacing."""
    side = [crop[axis][1] - crop[axis][0] for axis in transpose]
    own = [SPACING[axis] for axis in transpose]
    shape = [round(n * old / new) for n, old, new in zip(side, own, spacing, strict=True)]
    noted = {
        "spacing": SPACING,
        "bbox_used_for_cropping": [crop[axis] for axis in transpose],
        "shape_after_cropping_and_before_resampling": side,
        "shape_before_cropping": [WHOLE[axis] for axis in transpose],
    }
    return Grid.of(shape, noted, transpose, spacing)


def lay(values, source, target, nearest=None):
    """Return values and mask on the whole target."""
    made, covered = torch.empty(len(values), *target.shape), torch.empty(target.shape, dtype=torch.bool)
    for part, slab, mask in resampled(torch.from_numpy(values), source, target, nearest):
        made[:, part], covered[part] = slab, mask
    return made.numpy(), covered.numpy()


def linear(of):
    """Return a function that is linear in the position in the raw image, on the voxels of a grid."""
    places = np.meshgrid(*(of.positions(axis) for axis in range(3)), indexing="ij")
    by_axis = [places[of.axes.index(axis)] for axis in range(3)]
    return (1 + 0.5 * by_axis[0] - 0.3 * by_axis[1] + 0.2 * by_axis[2])[None]


def noise(of, heads=2):
    return np.random.default_rng(0).normal(size=(heads, *of.shape)).astype(np.float32)


def test_the_same_grid_changes_nothing():
    same = grid((2, 0, 1), ((3, 28), (2, 20), (1, 22)), (1.3, 0.9, 1.7))
    values = noise(same)
    made, covered = lay(values, same, same)
    np.testing.assert_array_equal(made, values)
    assert covered.all()


@pytest.mark.parametrize("transpose", list(itertools.permutations(range(3))))
def test_another_axis_order_only_moves_the_axes(transpose):
    source, target = grid(), grid(transpose, spacing=tuple(SPACING[axis] for axis in transpose))
    values = noise(source)
    np.testing.assert_array_equal(
        lay(values, source, target)[0], values.transpose(0, *(axis + 1 for axis in transpose))
    )


@pytest.mark.parametrize("spacing", [(0.7, 1.1, 1.2), (1.9, 2.0, 3.1), (1.0, 2.2, 1.3)])
def test_another_spacing_is_nnunets_resampling(spacing):
    source, target = grid(), grid(spacing=spacing)
    values = noise(source)
    expected = resample_data_or_seg_to_shape(values, target.shape, SPACING, spacing, order=1, force_separate_z=False)
    np.testing.assert_allclose(lay(values, source, target)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "axis"),
    [
        ((5.0, 1.0, 1.0), (3.0, 0.8, 1.2), 0),
        ((1.0, 1.0, 1.0), (0.8, 4.0, 1.2), 1),
        ((1.0, 4.0, 4.0), (1.0, 2.0, 3.0), None),
    ],
)
def test_long_voxels_take_the_nearest_slice_as_in_nnunet(before, after, axis):
    source, target = grid(spacing=before), grid(spacing=after)
    found = nearest_axis(source, target, {"order": 1, "order_z": 0, "force_separate_z": None})
    assert found == axis
    values = noise(source)
    expected = resample_data_or_seg_to_shape(values, target.shape, before, after, order=1, force_separate_z=None)
    np.testing.assert_allclose(lay(values, source, target, found)[0], expected, atol=1e-5)
    assert nearest_axis(source, target, {"order_z": 1}) is None
    assert nearest_axis(source, target, {"force_separate_z": False}) is None


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_positions_do_not_move(transpose):
    """A linear function survives interpolation, so any error of the alignment would show."""
    source = grid((2, 0, 1), ((2, 30), (1, 25), (0, 20)), (1.3, 0.8, 1.9))
    spacing = tuple((1.5, 1.2, 1.4)[axis] for axis in transpose)
    target = grid(transpose, ((4, 27), (3, 22), (2, 18)), spacing)
    made, covered = lay(linear(source), source, target)
    np.testing.assert_allclose(made, linear(target), atol=1e-4)
    assert covered.all()


def test_a_way_of_nnunets_own_steps():
    """The two steps of nnU-Net, to the raw image and from there, end at the same values for a linear function."""
    source, target = grid(spacing=(1.3, 1.1, 1.7)), grid(crop=((4, 27), (3, 22), (2, 18)), spacing=(1.5, 1.2, 1.4))
    values = linear(source)
    whole = resample_data_or_seg_to_shape(values, WHOLE, source.spacing, SPACING, order=1, force_separate_z=False)
    expected = resample_data_or_seg_to_shape(
        whole[:, 4:27, 3:22, 2:18], target.shape, SPACING, target.spacing, order=1, force_separate_z=False
    )
    inner = (slice(None), *[slice(1, -1)] * 3)  # nnU-Net's values beyond the outermost voxels of the crop are constant
    np.testing.assert_allclose(lay(values, source, target)[0][inner], expected[inner], atol=1e-4)


def test_what_the_source_does_not_cover():
    source, target = grid(crop=((10, 20), (0, 26), (5, 22))), grid()
    covered = lay(noise(source), source, target)[1]
    expected = np.zeros(WHOLE, bool)
    expected[10:20, :, 5:22] = True
    np.testing.assert_array_equal(covered, expected)


def test_slabs_of_any_size_give_the_same(monkeypatch):
    source, target = grid(spacing=(1.3, 1.1, 1.7)), grid((1, 2, 0), spacing=(1.2, 1.4, 1.5))
    values = noise(source)
    whole = lay(values, source, target)[0]
    monkeypatch.setattr("nnunet_kd.teachers.grids._SLAB", 1)
    parts = [part for part, _, _ in resampled(torch.from_numpy(values), source, target)]
    assert len(parts) == target.shape[0]
    np.testing.assert_array_equal(lay(values, source, target)[0], whole)


@pytest.mark.parametrize("code", ["LPS", "RAS", "LIA", "SPR", "PIR"])
def test_readers_that_reorient_are_undone(tmp_path, code):
    """The file's voxels lie where each of nnU-Net's readers puts them."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32))
    image.SetSpacing((1.1, 1.2, 1.3))
    image = sitk.DICOMOrient(image, code)
    path = str(tmp_path / "image.nii.gz")
    sitk.WriteImage(image, path)
    stored = sitk.GetArrayFromImage(image)
    for reader in (SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient):
        array, noted = reader().read_images([path])
        side = array.shape[1:]
        noted |= {
            "bbox_used_for_cropping": [(0, n) for n in side],
            "shape_after_cropping_and_before_resampling": side,
            "shape_before_cropping": side,
        }
        seen = Grid.of(side, noted, (0, 1, 2), noted["spacing"])
        assert seen.file_shape == stored.shape, reader.__name__
        plain = replace(
            seen, shape=stored.shape, cropped=stored.shape, whole=stored.shape, axes=(0, 1, 2), flipped=(False,) * 3
        )
        np.testing.assert_allclose(lay(array, seen, plain)[0][0], stored, atol=1e-5, err_msg=reader.__name__)
        np.testing.assert_allclose(lay(stored[None], plain, seen)[0], array, atol=1e-5, err_msg=reader.__name__)
