"""ISLES 2022 is on one grid, in any layout, and says which lesions are lost."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from tests.datasets import layouts
from tests.datasets.converting import convert, read, same_files


def test_isles_on_the_grid_of_the_labels(converted, tmp_path):
    root, _ = converted
    made = convert("ISLES2022", root / "ISLES2022", tmp_path, grid="dwi")
    mask = next((root / "ISLES2022").glob("derivatives/sub-strokecase0003/*/*_msk.nii.gz"))
    (label,) = made.folder.glob("labels*/strokecase0003.nii.gz")
    np.testing.assert_array_equal(read(label)[0], read(mask)[0])
    (flair,) = made.folder.glob("images*/strokecase0003_0002.nii.gz")
    assert read(flair)[0].shape == layouts.SHAPE and (made.training, made.test) == (4, 1)


def test_isles_mask_on_the_flairs_grid_is_the_nearest_voxels(converted):
    root, made = converted
    (path,) = made["ISLES2022"].folder.glob("labels*/strokecase0002.nii.gz")
    ours, grid = read(path)
    _, mask = read(next((root / "ISLES2022").glob("derivatives/sub-strokecase0002/*/*_msk.nii.gz")))
    checked = 0
    for z, y, x in np.argwhere(ours >= 0)[::37]:
        place = grid.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
        index = mask.TransformPhysicalPointToContinuousIndex(place)
        if any(abs(i - round(i)) > 0.45 for i in index):
            continue  # halfway between two
        nearest = tuple(round(i) for i in index)
        inside = all(0 <= i < n for i, n in zip(nearest, mask.GetSize(), strict=True))
        assert ours[z, y, x] == (mask[nearest] if inside else 0)
        checked += 1
    assert checked > 50


def test_isles_says_which_lesions_its_grid_loses(tmp_path):
    """Two DWI voxels between the centres of the FLAIR's slices."""
    layouts.isles2022(tmp_path)
    shape = (12, 12, 12)
    mask = np.zeros(shape, np.uint16)
    mask[5:9, 5:9, 5:9] = mask[1, 2, 2] = 1
    flair = np.ones((2, 12, 12), np.float32)  # slices at 6 and 12 mm
    name = "sub-strokecase0002"
    for role in ("adc", "dwi"):
        path = next(tmp_path.glob(f"rawdata/{name}/ses-0001/dwi/*_{role}.nii.gz"))
        layouts.write(sitk.GetImageFromArray(np.ones(shape)), path)
    layouts.write(sitk.GetImageFromArray(mask), next(tmp_path.glob(f"derivatives/{name}/ses-0001/*_msk.nii.gz")))
    coarse = sitk.GetImageFromArray(flair)
    coarse.SetSpacing((1, 1, 6))
    coarse.SetOrigin((0, 0, 6))
    layouts.write(coarse, next(tmp_path.glob(f"rawdata/{name}/ses-0001/anat/*_FLAIR.nii.gz")))
    notes = convert("ISLES2022", tmp_path, tmp_path / "raw").notes
    assert "strokecase0002: 1 of 2 lesions have no voxel on the FLAIR's grid" in notes
    assert convert("ISLES2022", tmp_path, tmp_path / "raw", number=602, grid="dwi").notes == []


@pytest.mark.parametrize("release", ["2023", "challenge"])
def test_isles_in_its_other_layouts(converted, tmp_path, release):
    """Subjects beside the derivatives, with and without folders for the modalities."""
    root, made = converted
    source = tmp_path / "source"
    shutil.copytree(root / "ISLES2022", source)
    for subject in source.glob("rawdata/sub-*"):
        subject.rename(source / subject.name)
    shutil.rmtree(source / "rawdata")
    if release == "challenge":
        for path in list(source.glob("sub-*/ses-*/*/*.nii.gz")):
            path.rename(path.parents[1] / path.name)
    again = convert("ISLES2022", source, tmp_path / "raw")
    same_files(made["ISLES2022"].folder, again.folder)
