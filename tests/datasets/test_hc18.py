"""HC18 becomes filled heads with their pixel size."""

import numpy as np
import pytest

from nnunet_kd.datasets.hc18 import FetalHeadHC18
from nnunet_kd.datasets.splits import official_or_grouped_splits
from tests.datasets import layouts
from tests.datasets.converting import convert, read


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("filename,size\n000_HC.png,nan\n", r"size_and_HC.csv, line 2: 'nan' is no pixel size"),
        ("filename,size\n000_HC.png,0\n", r"size_and_HC.csv, line 2: '0' is no pixel size"),
        ("filename,size\n000_HC.png,0.1\u00b5\n", r"size_and_HC.csv is no table in UTF-8"),
    ],
)
def test_pixel_sizes_are_checked(tmp_path, table, message):
    layouts.hc18(tmp_path)
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text(table, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        convert("FetalHeadHC18", tmp_path, tmp_path / "raw")


def test_pixel_sizes_are_those_of_the_training_set(tmp_path):
    """The test set's pictures have the same names, and their table may lie beside it."""
    layouts.hc18(tmp_path)
    table = tmp_path / "training_set_pixel_size_and_HC.csv"
    (tmp_path / "test_set_pixel_size.csv").write_text("filename,pixel size(mm)\n000_HC.png,9.9\n")
    table = table.rename(table.with_name("Training_set_pixel_size_and_HC.csv"))
    made = convert("FetalHeadHC18", tmp_path, tmp_path / "raw")
    _, image = read(made.folder / "imagesTr" / "000_HC_0000.nii.gz")
    np.testing.assert_allclose(image.GetSpacing(), [0.15] * 2, rtol=1e-5)
    table.unlink()
    with pytest.raises(ValueError, match="no table with the pixel size of 000_HC.png"):
        convert("FetalHeadHC18", tmp_path, tmp_path / "raw", number=600)


def test_outlines_of_heads_are_filled_and_have_their_size(converted):
    _, made = converted
    for number in range(3):
        label, image = read(made["FetalHeadHC18"].folder / "labelsTr" / f"00{number}_HC.nii.gz")
        y, x = np.mgrid[:60, :80]
        inside = np.hypot((y - 30) / 20, (x - (40 if number < 2 else 6)) / 30) < 1.05  # the line's outer edge
        assert (label.astype(bool) == inside).mean() > 0.99
        np.testing.assert_allclose(image.GetSpacing(), [0.15 + 0.1 * number] * 2, rtol=1e-5)


def test_pictures_of_one_examination_stay_together(tmp_path):
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for examination in range(7):
        for picture in ("HC", "2HC", "3HC")[: examination % 3 + 1]:
            name = f"{examination:03d}_{picture}"
            for path in (f"{name}.png", f"{name}_Annotation.png"):
                layouts.write(np.zeros((9, 9), np.uint8), tmp_path / "training_set" / path)
            rows.append(f"{name}.png,0.15,44.3")
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows))
    cases, _ = FetalHeadHC18().find(tmp_path)
    assert len(cases) == 13
    for split in official_or_grouped_splits(cases):
        assert split["val"] and not {one[:3] for one in split["train"]} & {one[:3] for one in split["val"]}
