"""BUSI has several masks per picture, of one class or two."""

import numpy as np
from PIL import Image

from tests.datasets import layouts
from tests.datasets.converting import convert


def test_masks_of_one_picture_are_joined_and_classes_are_an_option(converted, tmp_path):
    root, made = converted
    joined = np.asarray(Image.open(made["BUSI"].folder / "labelsTr" / "benign_0002.png"))
    assert joined[:5, :5].all() and joined[layouts.disc(44, 52)].all() and joined.max() == 1
    classes = convert("BUSI", root / "BUSI", tmp_path, classes=True)
    values = {}
    for kind in ("benign", "malignant", "normal"):
        label = np.asarray(Image.open(classes.folder / "labelsTr" / f"{kind}_0001.png"))
        values[kind] = set(np.unique(label).tolist())
    assert values == {"benign": {0, 1}, "malignant": {0, 2}, "normal": {0}}
