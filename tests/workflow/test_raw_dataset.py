"""The raw data set of a distillation."""

import json

import numpy as np
import pytest
import SimpleITK

from nnunet_kd.workflow.distillation import split_cases
from nnunet_kd.workflow.raw_dataset import find_cases, student_dataset, write_raw_dataset

TEACHER = {
    "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"},
    "labels": {"background": 0, "left": 1, "right": 2, "lesion": 3},
    "file_ending": ".nii.gz",
}


def volume(path, shape=(4, 5, 6), value=0):
    image = SimpleITK.GetImageFromArray(np.full(shape, value, np.uint8))
    image.SetSpacing((1.5, 1, 2))
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        for channel in range(3):
            volume(folder / f"case_{number}_{channel:04d}.nii.gz", value=channel)
    return folder


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    volume(folder / "case_1.nii.gz", value=2)
    return folder


def written(tmp_path, images, labels, channels=None, skip_bad=False, teacher=TEACHER):
    cases = find_cases(images, labels, teacher)
    dataset = student_dataset(teacher, cases, channels, None)
    bad = write_raw_dataset(tmp_path / "raw", cases, dataset, channels, skip_bad, lambda names: names)
    return json.loads((tmp_path / "raw" / "dataset.json").read_text()), bad


def test_cases_without_a_reference_are_ignored_everywhere(tmp_path, images, labels):
    dataset, bad = written(tmp_path, images, labels)
    assert dataset["labels"] == {**TEACHER["labels"], "ignore": 4} and dataset["numTraining"] == 4 and not bad
    for number in range(4):
        image = SimpleITK.ReadImage(str(tmp_path / "raw" / "labelsTr" / f"case_{number}.nii.gz"))
        assert image.GetSpacing() == (1.5, 1, 2)
        assert {*np.unique(SimpleITK.GetArrayFromImage(image))} == ({2} if number == 1 else {4})
    assert len(list((tmp_path / "raw" / "imagesTr").iterdir())) == 12
    written(tmp_path, images, labels)  # again


def test_only_the_body_of_an_unlabelled_case_is_ignored(tmp_path, images, labels):
    """Otherwise nnU-Net would normalise such a case over the whole image."""
    for channel in range(3):
        content = np.zeros((4, 5, 6), np.uint8)
        content[1:3, 1:4, 2:5] = 7
        image = SimpleITK.GetImageFromArray(content)
        SimpleITK.WriteImage(image, str(images / f"case_0_{channel:04d}.nii.gz"))
    written(tmp_path, images, labels)
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "raw" / "labelsTr" / "case_0.nii.gz")))
    np.testing.assert_array_equal(reference, np.where(content, 4, 0))


def test_no_label_is_ignored_where_all_cases_have_a_reference(tmp_path, images, labels):
    for number in (0, 2, 3):
        volume(labels / f"case_{number}.nii.gz", value=1)
    dataset, _ = written(tmp_path, images, labels)
    assert dataset["labels"] == TEACHER["labels"]


def test_the_student_sees_some_channels(tmp_path, images, labels):
    dataset, _ = written(tmp_path, images, labels, channels=[2, 0])
    assert dataset["channel_names"] == {"0": "FLAIR", "1": "T1"}
    for channel, value in ((0, 2), (1, 0)):
        image = SimpleITK.ReadImage(str(tmp_path / "raw" / "imagesTr" / f"case_3_{channel:04d}.nii.gz"))
        assert {*SimpleITK.GetArrayFromImage(image).ravel()} == {value}


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (None, TEACHER["labels"]),
        ({"lesion": ["lesion"], "side": ["left", "right"]}, {"background": 0, "lesion": 1, "side": 2}),
    ],
)
def test_the_labels_of_the_student(images, labels, label_map, expected):
    cases = find_cases(images, labels, TEACHER)
    found = student_dataset(TEACHER, cases, None, label_map)["labels"]
    assert {name: value for name, value in found.items() if name != "ignore"} == expected
    assert found["ignore"] == max(expected.values()) + 1


def test_regions_stay_regions(images, labels):
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    teacher = {**TEACHER, "labels": regions, "regions_class_order": [1, 2]}
    found = student_dataset(teacher, find_cases(images, labels, teacher), None, None)
    assert found["labels"] == {**regions, "ignore": 3} and found["regions_class_order"] == [1, 2]


def test_an_image_that_cannot_be_read_is_named_and_can_be_skipped(tmp_path, images, labels):
    broken = images / "case_2_0001.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"cannot read {broken}: it is truncated or damaged. Give --skip-bad"):
        written(tmp_path, images, labels)
    assert not (tmp_path / "raw" / "dataset.json").exists()
    dataset, bad = written(tmp_path, images, labels, skip_bad=True)
    assert [*bad] == ["case_2"] and dataset["numTraining"] == 3
    assert not list((tmp_path / "raw").rglob("case_2*"))


def test_a_reference_of_another_shape_is_named(tmp_path, images, labels):
    volume(labels / "case_0.nii.gz", shape=(4, 5, 7))
    with pytest.raises(ValueError, match=r"labels/case_0\.nii\.gz has the shape \(4, 5, 7\), but its image has"):
        written(tmp_path, images, labels)


def test_a_reference_with_a_label_that_the_student_does_not_have_is_named(tmp_path, images, labels):
    """nnU-Net's training would end at the first patch that contains it."""
    volume(labels / "case_0.nii.gz", value=57)
    with pytest.raises(ValueError, match=r"labels/case_0\.nii\.gz has the label 57, but the student's labels are back"):
        written(tmp_path, images, labels)


@pytest.mark.parametrize(
    ("reader", "stored", "message"),
    [
        (
            "NibabelIO",
            np.full((4, 5, 6), np.nan, np.float32),
            "an image of case case_0, .*images/case_0_0000.nii.gz, has voxels that",
        ),
        (
            "SimpleITKIO",
            np.zeros((2, 4, 5, 6), np.uint8),
            "images/case_0_0000.nii.gz has 6 channels, but the teacher has 3",
        ),
    ],
)
def test_images_that_would_stop_a_later_step_are_named_at_once(tmp_path, images, reader, stored, message):
    for channel in range(3):
        image = SimpleITK.GetImageFromArray(stored, isVector=False)
        SimpleITK.WriteImage(image, str(images / f"case_0_{channel:04d}.nii.gz"))
    teacher = {**TEACHER, "overwrite_image_reader_writer": reader}  # SimpleITK reads 0 for what is not a number
    with pytest.raises(ValueError, match=message):
        written(tmp_path, images, None, teacher=teacher)
    assert [*written(tmp_path, images, None, skip_bad=True, teacher=teacher)[1]] == ["case_0"]


def test_a_reference_is_written_again_if_its_image_has_changed(tmp_path, images):
    written(tmp_path, images, None)
    for channel in range(3):
        volume(images / f"case_0_{channel:04d}.nii.gz", shape=(4, 5, 9))
    written(tmp_path, images, None)
    assert SimpleITK.ReadImage(str(tmp_path / "raw" / "labelsTr" / "case_0.nii.gz")).GetSize() == (9, 5, 4)


def test_what_cannot_be_distilled(tmp_path, images, labels):
    volume(labels / "case_9.nii.gz")
    with pytest.raises(
        ValueError, match=r"case_9\.nii\.gz belongs to no image in .*: there is no case_9_0000\.nii\.gz"
    ):
        find_cases(images, labels, TEACHER)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'none'}"):
        find_cases(tmp_path / "none", None, TEACHER)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds 0 cases with names such as CASE_0000\.nii\.gz"):
        find_cases(tmp_path / "empty", None, TEACHER)
    with pytest.raises(ValueError, match=r"empty holds no reference with a name such as CASE\.nii\.gz"):
        find_cases(images, tmp_path / "empty", TEACHER)
    (images / "case_3_0002.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"case case_3: there is no .*case_3_0002\.nii\.gz"):
        find_cases(images, None, TEACHER)


def test_images_of_another_format(tmp_path):
    for number in range(3):
        volume(tmp_path / f"case_{number}_0000.mha")
    teacher = {**TEACHER, "channel_names": {"0": "T1"}}
    message = r"holds 3 \.mha images, such as case_0_0000\.mha, but the teacher reads \.nii\.gz: convert them"
    with pytest.raises(ValueError, match=message):
        find_cases(tmp_path, None, teacher)
    for number in range(3, 6):  # nobody wants to lose half of the images silently
        volume(tmp_path / f"case_{number}_0000.nii.gz")
    with pytest.raises(ValueError, match=message):
        find_cases(tmp_path, None, teacher)


def test_labelled_and_unlabelled_cases_are_kept_back():
    cases = [f"case_{number}" for number in range(20)]
    split = split_cases(cases, dict.fromkeys(cases[:10]), 0.2)
    kept = {*split["val"]}
    assert len(kept & {*cases[:10]}) == 2 and len(kept & {*cases[10:]}) == 2
    assert sorted(split["train"] + split["val"]) == sorted(cases)
    assert split_cases(cases, dict.fromkeys(cases[:10]), 0.2) == split


@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_two_cases_train_and_one_is_kept_back(share):
    split = split_cases(["a", "b", "c"], {}, share)
    assert len(split["train"]) == 2 and len(split["val"]) == 1
