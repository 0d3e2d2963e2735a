"""BraTS 2021 and BraTS 2024 have the classes and regions of their challenges, and visits stay together."""

import json
import shutil

import numpy as np
import pytest

from tests.datasets.converting import convert, read, same_files


@pytest.mark.parametrize(
    ("name", "classes", "regions"),
    [
        ("BraTS2021", {"NCR": 1, "ED": 2, "ET": 3}, {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}),
        (
            "BraTS2024GLI",
            {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
            {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}, "RC": {4}},
        ),
    ],
)
def test_classes_and_regions_are_the_challenges(converted, tmp_path, name, classes, regions):
    root, made = converted
    labels = json.loads((made[name].folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, **classes}
    described = json.loads((convert(name, root / name, tmp_path, regions=True).folder / "dataset.json").read_text())
    foreground = {region: set(values) for region, values in described["labels"].items() if region != "background"}
    assert foreground == regions


@pytest.mark.parametrize("name", ["BraTS2024GLI", "BraTS2021"])
def test_regions(converted, tmp_path, name):
    """What nnU-Net reads out of them is the challenge's regions."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    root, _ = converted
    made = convert(name, root / name, tmp_path, regions=True)
    description = json.loads((made.folder / "dataset.json").read_text())
    manager = LabelManager(description["labels"], description["regions_class_order"])
    assert manager.has_regions
    label, _ = read(next((made.folder / "labelsTr").iterdir()))
    masks = np.stack([np.isin(label, region) for region in manager.foreground_regions])
    again = manager.convert_probabilities_to_segmentation(masks.astype(np.float32))
    np.testing.assert_array_equal(again, label)


def test_brats_files_are_linked_labels_are_bytes_and_visits_stay_together(converted):
    root, made = converted
    folder = made["BraTS2024GLI"].folder
    assert (made["BraTS2024GLI"].training, made["BraTS2024GLI"].test) == (5, 1)  # a fifth of six, in whole patients
    assert made["BraTS2024GLI"].notes == ["1 cases without labels were left out: BraTS-GLI-99999-000, ..."]
    source = root / "BraTS2024GLI" / "BraTS-GLI-00005-101"
    (image,) = folder.glob("images*/BraTS-GLI-00005-101_0001.nii.gz")
    assert image.samefile(source / "BraTS-GLI-00005-101-t1c.nii.gz")
    (label,) = folder.glob("labels*/BraTS-GLI-00005-101.nii.gz")
    assert read(label)[0].dtype == np.uint8 and set(np.unique(read(label)[0])) == {0, 1, 2, 3, 4}
    (other,) = folder.glob("labels*/BraTS-GLI-00005-100.nii.gz")
    assert label.parent == other.parent


def test_brats2021_label_4_becomes_3(converted):
    root, made = converted
    ours, _ = read(made["BraTS2021"].folder / "labelsTr" / "BraTS2021_00001.nii.gz")
    given, _ = read(root / "BraTS2021" / "BraTS2021_00001" / "BraTS2021_00001_seg.nii")
    np.testing.assert_array_equal(ours, np.where(given == 4, 3, given))


def test_brats_in_parts_that_are_linked_together(converted, tmp_path):
    root, made = converted
    parts = tmp_path / "parts"
    shutil.copytree(root / "BraTS2024GLI", parts / "first")
    second = parts / "second"
    second.mkdir()
    moved = max(path for path in (parts / "first").iterdir() if path.is_dir() and "99999" not in path.name)
    moved.rename(second / moved.name)
    (second / "circle").symlink_to(parts)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("first", "second"):
        (source / name).symlink_to(parts / name)
    again = convert("BraTS2024GLI", source, tmp_path / "raw")
    same_files(made["BraTS2024GLI"].folder, again.folder)
