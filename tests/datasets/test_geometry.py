"""Voxels keep their place in space, whatever is resampled."""

import numpy as np
import pytest

from tests.datasets import layouts
from tests.datasets.converting import read


def brightest(path):
    """Where the landmark is, in mm."""
    array, image = read(path)
    z, y, x = np.unravel_index(int(array.argmax()), array.shape)
    return np.array(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))))


LANDMARKS = {  # result's image, source's image
    "BraTS2024GLI": ("BraTS-GLI-00006-100_0002.nii.gz", "BraTS-GLI-00006-100/BraTS-GLI-00006-100-T2W.nii.gz"),
    "BraTS2021": ("BraTS2021_00001_0003.nii.gz", "BraTS2021_00001/BraTS2021_00001_flair.nii"),
    "Synapse": ("synapse_0040_0000.nii.gz", "img/img0040.nii.gz"),
    "ISLES2022": (
        "strokecase0002_0002.nii.gz",
        "rawdata/sub-strokecase0002/ses-0001/anat/sub-strokecase0002_ses-0001_FLAIR.nii.gz",
    ),
    "FCD2023": ("sub-00003_0001.nii.gz", "sub-00003/anat/sub-00003_acq-x_FLAIR.nii.gz"),
}


@pytest.mark.parametrize("name", LANDMARKS)
def test_a_landmark_stays_where_it_was(converted, name):
    root, made = converted
    result, source = LANDMARKS[name]
    (path,) = made[name].folder.glob(f"images*/{result}")
    np.testing.assert_allclose(brightest(path), brightest(root / name / source), atol=1e-3)
    one, other = read(path)[1], read(root / name / source)[1]
    label = read(next(made[name].folder.glob(f"labels*/{result[:-12]}.nii.gz")))[1]
    for what in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(one, what)(), getattr(other, what)(), atol=1e-5)
        np.testing.assert_allclose(getattr(label, what)(), getattr(one, what)(), atol=1e-5)


@pytest.mark.parametrize(("name", "channel"), [("ISLES2022", 1), ("FCD2023", 0)])
def test_a_resampled_landmark_is_within_a_voxel(converted, name, channel):
    """On the FLAIR's grid."""
    root, made = converted
    result = LANDMARKS[name][0].replace("_0002", "_0001") if name == "ISLES2022" else "sub-00003_0000.nii.gz"
    (path,) = made[name].folder.glob(f"images*/{result}")
    pattern = "rawdata/sub-strokecase0002/*/dwi/*_dwi.nii.gz" if channel else "sub-00003/anat/*_T1w.nii.gz"
    (source,) = (root / name).glob(pattern)
    distance = np.abs(brightest(path) - brightest(source))
    assert (distance <= np.linalg.norm(layouts.FLAIR["spacing"])).all()
    assert read(path)[0].shape == layouts.FLAIR_SHAPE and read(path)[0].dtype == np.float32
