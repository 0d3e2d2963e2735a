"""``Segmenter`` segments arrays and files from Python."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.runtime import Segmenter


@pytest.fixture(scope="module")
def segmenter(onnx_models):
    return Segmenter(onnx_models["3d_fullres"], threads=1, mirroring=False)


@pytest.fixture(scope="module")
def files(students):
    return sorted((students.raw / "imagesTs").glob("*.nii.gz"))


@pytest.fixture(scope="module")
def image(files):
    """The channels ``(channels, z, y, x)`` and the voxel size along z, y, x."""
    images = [sitk.ReadImage(str(path)) for path in files]
    return np.stack([sitk.GetArrayFromImage(one) for one in images]), images[0].GetSpacing()[::-1]


def test_an_array_and_files_give_the_same_labels(segmenter, files, image, tmp_path):
    before = image[0].copy()
    labels = segmenter.segment(*image)
    assert labels.shape == image[0].shape[1:] and labels.dtype == np.uint8
    np.testing.assert_array_equal(image[0], before)
    np.testing.assert_array_equal(segmenter.segment_file(files), labels)
    np.testing.assert_array_equal(segmenter.segment_file([str(path) for path in files], tmp_path / "a.nii.gz"), labels)
    written = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)
    assert written.GetSpacing()[::-1] == pytest.approx(image[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_threads_do_not_disturb_one_another(segmenter, image):
    array, spacing = image
    arrays = [np.roll(array, shift, 1) for shift in range(6)]
    expected = [segmenter.segment(one, spacing) for one in arrays]
    assert any((one != expected[0]).any() for one in expected)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: segmenter.segment(one, spacing), arrays * 2))
    for one, other in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(one, other)


def test_wrong_arrays(segmenter, image):
    array, spacing = image
    for wrong in (array[:2], array[0], array[:, :0], array[None]):
        with pytest.raises(ValueError, match=r"must have the shape \(3, z, y, x\) for T1, T1C, FLAIR, got \("):
            segmenter.segment(wrong, spacing)
    for wrong in ((1, 1), (1, 1, 0), (1, 1, float("nan")), (1, 1, -2)):
        with pytest.raises(ValueError, match="the spacing must be three sizes in mm along z, y, x, got"):
            segmenter.segment(array, wrong)


def test_wrong_files(segmenter, files, tmp_path):
    with pytest.raises(ValueError, match=r"_0000\.nii\.gz has 1 channel, but the model takes 3 \(T1, T1C, FLAIR\)$"):
        segmenter.segment_file(files[0])
    with pytest.raises(ValueError, match=r"a\.nrrd does not end with \.nii\.gz"):
        segmenter.segment_file(files, tmp_path / "a.nrrd")
    with pytest.raises(ValueError, match="it is one of the inputs"):
        segmenter.segment_file(files, files[1])


def test_a_slice(onnx_models):
    segmenter = Segmenter(onnx_models["2d"], threads=1, mirroring=False)
    picture = np.random.default_rng(0).normal(100, 20, (3, 1, 25, 31))
    assert segmenter.segment(picture, (999, 1, 1)).shape == (1, 25, 31)


def test_wrong_settings(onnx_models):
    with pytest.raises(ValueError, match="the step size must be above 0 and at most 1, got 2"):
        Segmenter(onnx_models["2d"], step_size=2)
    with pytest.raises(ValueError, match="an engine is one of"):
        Segmenter(onnx_models["2d"], engine="tensorrt")
