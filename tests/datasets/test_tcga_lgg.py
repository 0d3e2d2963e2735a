"""TCGA-LGG becomes slices or volumes."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.datasets.converting import convert, read


def test_tcga_slices_and_volumes(converted, tmp_path):
    root, made = converted
    folder = made["TCGALGG"].folder
    picture = np.asarray(Image.open(folder / "imagesTr" / "TCGA_CS_4940_19960909_10_0000.png"))
    source = root / "TCGALGG" / "kaggle_3m" / "TCGA_CS_4940_19960909" / "TCGA_CS_4940_19960909_10.tif"
    np.testing.assert_array_equal(picture, np.asarray(Image.open(source)))
    splits = json.loads((folder / "splits_final.json").read_text())
    assert len(splits) == 5 and made["TCGALGG"].splits
    for split in splits:
        patients = [{identifier.rsplit("_", 1)[0] for identifier in split[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1] and len(split["train"]) + len(split["val"]) == 18
    assert sorted(one for split in splits for one in split["val"]) == sorted(splits[0]["train"] + splits[0]["val"])
    stacked = convert("TCGALGG", root / "TCGALGG", tmp_path, volumes=True)
    images, _ = read(stacked.folder / "imagesTr" / "TCGA_CS_4940_19960909_0001.nii.gz")
    assert stacked.training == 6 and images.shape == (3, 40, 36) and images[:, 0, 0].tolist() == [1, 2, 10]
    label, _ = read(stacked.folder / "labelsTr" / "TCGA_CS_4940_19960909.nii.gz")
    assert label.sum((1, 2)).tolist() == [10, 20, 100]
    source = tmp_path / "source"
    (source / "TCGA_XX_0001_20000101").mkdir(parents=True)
    with pytest.raises(ValueError, match="there are no slices in .*TCGA_XX_0001_20000101"):
        convert("TCGALGG", source, tmp_path, number=600, volumes=True)
