"""Kvasir-SEG has masks in JPEG."""

import numpy as np
from PIL import Image

from tests.datasets import layouts


def test_grey_of_jpeg_masks_is_cut_in_the_middle(converted):
    _, made = converted
    mask = np.asarray(Image.open(made["KvasirSEG"].folder / "labelsTr" / "cju1.png"))
    assert set(np.unique(mask)) == {0, 1}
    assert (mask.astype(bool) == layouts.disc(44, 52)).mean() > 0.97
