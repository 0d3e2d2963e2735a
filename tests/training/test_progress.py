import numpy as np
from PIL import Image

from nnunet_kd.training.progress import append_terms


def test_curves_are_drawn_below(tmp_path):
    png = tmp_path / "progress.png"
    before = np.full((300, 3000, 3), 200, np.uint8)
    Image.fromarray(before).save(png)
    append_terms(png, {"segmentation": [1.0, 0.5, 0.2], "dcd": [float("nan"), 30.0, 20.0]})
    after = np.asarray(Image.open(png))
    assert after.shape == (300 + 1800, 3000, 3)
    assert (after[:300] == before).all()
    coloured = (after[300:].max(2).astype(int) - after[300:].min(2)) > 60
    assert coloured.sum() > 5000  # two curves in colour
    assert list(tmp_path.iterdir()) == [png]


def test_negative_values_and_terms_that_are_not_active_yet(tmp_path):
    png = tmp_path / "progress.png"
    Image.new("RGB", (3000, 10)).save(png)
    append_terms(png, {"segmentation": [-0.5], "dcd": [float("nan")]})
    append_terms(png, {"dcd": []})
    assert Image.open(png).height == 10 + 2 * 1800


def test_a_missing_picture_is_ignored(tmp_path):
    append_terms(tmp_path / "progress.png", {"dcd": [1.0]})
    assert not list(tmp_path.iterdir())
