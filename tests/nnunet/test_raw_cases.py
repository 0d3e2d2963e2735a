import os
import re

import pytest

from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.nnunet.raw_cases import training_images, training_labels

DATASET_JSON = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "labels": {"background": 0, "a": 1}}


def listed(**cases):
    return {**DATASET_JSON, "dataset": cases}


def test_listed_files_are_found_where_nnunet_finds_them(tmp_path, monkeypatch):
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    one = {"images": ["a/t1.nii.gz", "../b/t2.nii.gz"], "label": "$ELSEWHERE/seg.nii.gz"}
    two = {"images": [str(tmp_path / "all channels.nii.gz")], "label": "${ELSEWHERE}/../c.nii.gz"}
    description = listed(one=one, two=two)
    images = training_images(tmp_path / "raw", description, ["one", "two"])
    labels = training_labels(tmp_path / "raw", description)
    theirs = get_filenames_of_train_images_and_targets(str(tmp_path / "raw"), listed(one={**one}, two={**two}))
    for case, files in theirs.items():
        assert [str(path) for path in images[case]] == files["images"]
        assert str(labels[case]) == os.path.abspath(files["label"])


def test_files_in_imagestr_and_labelstr_are_found(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for name in ("one_0000.nii.gz", "one_0001.nii.gz", "two_0000.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    images = training_images(tmp_path, DATASET_JSON, ["one"])
    assert [path.name for path in images["one"]] == ["one_0000.nii.gz", "one_0001.nii.gz"]
    assert training_labels(tmp_path, DATASET_JSON, ["one"]) == {"one": tmp_path / "labelsTr" / "one.nii.gz"}
    with pytest.raises(ValueError, match="case two: there is no .*two_0001.nii.gz"):
        training_images(tmp_path, DATASET_JSON, ["one", "two"])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], '"dataset" in dataset.json must be an object, one entry per case, got'),
        ({"other": {}}, 'case one: dataset.json lists 1 cases under "dataset", but not this one'),
        ({"one": "file"}, 'case one: dataset.json must list {"images": [FILE, ...], "label": FILE}, got file'),
        ({"one": {"images": ["a", "b"]}}, "case one: dataset.json must list"),
        ({"one": {"images": "a", "label": "b"}}, "case one: dataset.json must list"),
        ({"one": {"images": [1], "label": "b"}}, "case one: dataset.json must list"),
        (
            {"one": {"images": ["a"] * 3, "label": "b"}},
            "case one: dataset.json lists 3 images, but one per channel (2)",
        ),
    ],
)
def test_invalid_lists_are_refused(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        training_images(tmp_path, {**DATASET_JSON, "dataset": dataset}, ["one"])


def test_a_case_with_an_invalid_name_is_refused(tmp_path):
    """Links and nnU-Net's copies would be written elsewhere."""
    with pytest.raises(ValueError, match=r"names a case '\.\./one', which is not a valid file name"):
        training_labels(tmp_path, listed(**{"../one": {"images": ["a"], "label": "b"}}))


def test_links_have_nnunets_names(tmp_path):
    """The original names do not matter. The voxel sizes that lie beside 3-D TIFF images and labels are linked too."""
    for name in ("scan_0000.tif", "scan.json", "mask.tif", "mask.json"):
        (tmp_path / name).touch()
    images = link_cases(tmp_path / "images", {"a": [tmp_path / "scan_0000.tif"]}, lambda case, i: f"{case}_{i:04d}.tif")
    labels = link_cases(tmp_path / "labels", {"a": [tmp_path / "mask.tif"]}, lambda case, _: f"{case}.tif")
    found = {path.name: path.resolve().name for folder in (images, labels) for path in sorted(folder.iterdir())}
    assert found == {"a_0000.tif": "scan_0000.tif", "a.tif": "mask.tif", "a.json": "mask.json"}
    assert (images / "a.json").resolve().name == "scan.json"
