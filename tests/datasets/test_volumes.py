"""Volumes are compared by their place in space, and read again after they are written."""

import os

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.datasets.volumes import same_grid
from nnunet_kd.storage.writing import DiskFullError
from tests.datasets import layouts
from tests.datasets.converting import convert


def test_grids_with_exchanged_axes_are_others():
    one = sitk.Image(4, 4, 4, sitk.sitkUInt8)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        other = sitk.Image(one)
        other.SetDirection(np.eye(3)[list(order)].ravel().tolist())
        assert not same_grid(one, other)
    assert same_grid(one, sitk.Image(one))


@pytest.mark.parametrize(("name", "options"), [("ISLES2022", {}), ("FCD2023", {}), ("TCGALGG", {"volumes": True})])
def test_an_image_that_is_written_in_part_is_a_full_disk(tmp_path, monkeypatch, name, options):
    """SimpleITK does not say so."""
    layouts.LAYOUTS[name](tmp_path / "source")
    write = sitk.WriteImage

    def half(image, path, *words, **more):
        write(image, path, *words, **more)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(DiskFullError, match="_0000.nii.gz"):
        convert(name, tmp_path / "source", tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
