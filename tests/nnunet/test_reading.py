"""JSON from anybody is read, or refused in one sentence that names the file; nothing takes the machine down."""

import json
import math
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_kd.nnunet import reading
from nnunet_kd.nnunet.reading import check_stored, read_dataset_json, read_json, read_plans, read_splits, reason

DEEP = 100_000
WRONG = {
    "nothing": (b"", "it is no JSON"),
    "half": (b'{"a": ', "it is no JSON"),
    "arrays in arrays": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "it is nested deeper than 50 levels"),
    "objects in objects": (b'{"a": ' * DEEP + b"1" + b"}" * DEEP, "it is nested deeper than 50 levels"),
    "a little too deep": (b'{"a": ' * 52 + b"1" + b"}" * 52, "it is nested deeper than 50 levels"),
    "deep and never closed": (b"[" * DEEP, "it is n"),
    "another encoding": ('{"a": "ü"}'.encode("latin-1"), "it is not in UTF-8"),
    "two bytes a letter": ('{"a": 1}'.encode("utf-16"), "it is not in UTF-8"),
    "zeros": (b"\0" * 1000, "it is no JSON"),
    "a list": (b"[1]", "is no JSON object"),
    "a number": (b"1", "is no JSON object"),
    "a huge integer": (b'{"a": 1' + b"0" * 5000 + b"}", "it holds a number of 5001 digits"),
    "an integer of 65 bits": (b'{"a": -36893488147419103232}', "it holds a number of"),
    "a number that is infinite": (b'{"a": 1e999}', "it holds the number 1e999, which is not finite"),
    "infinity": (b'{"a": -Infinity}', "it holds the number -Infinity, which is not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_object_is_refused(tmp_path, name):
    content, message = WRONG[name]
    path = tmp_path / "plans.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path, "the teacher's ")
    assert message in str(caught.value) and f"the teacher's {path}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    path = tmp_path / "plans.json"
    with path.open("wb") as file:
        file.truncate(2**38)  # a hole: it takes no place on the disk
    with pytest.raises(ValueError, match=r"plans\.json: it is larger than 64 MiB"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes of that kind")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "plans.json")
    with pytest.raises(ValueError, match=r"cannot read .*plans\.json: it is no file"):
        read_json(tmp_path / "plans.json")


def test_a_file_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*plans\.json: there is no such file"):
        read_json(tmp_path / "plans.json")


def test_what_nnunet_writes_is_read(tmp_path):
    content = {"a": [1, -2.5, None, True, "ü"], "b": {"c": 2**63 - 1}, "nested": json.loads("[" * 48 + "]" * 48)}
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**content, "Dice": math.nan}))
    read = read_json(path)
    assert math.isnan(read.pop("Dice")) and read == content


PLANS = {"plans_name": "p", "dataset_name": "d", "configurations": {"2d": {}}}


@pytest.mark.parametrize(
    "change", [{"configurations": []}, {"configurations": {"2d": 1}}, {"plans_name": None}, {"plans_name": "a\x1b[31m"}]
)
def test_plans_that_are_none(tmp_path, change):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(PLANS))
    assert read_plans(path) == PLANS
    path.write_text(json.dumps({**PLANS, **change}))
    with pytest.raises(ValueError, match=r"plans\.json holds no plans of nnU-Net"):
        read_plans(path)


STAGED = {"n_stages": 3, "features_per_stage": [8, 16, 32], "strides": [1, 2, 2], "n_conv_per_stage_decoder": [2, 2]}


def staged(name="dynamic_network_architectures.architectures.unet.PlainConvUNet", **changes):
    return {"architecture": {"network_class_name": name, "arch_kwargs": {**STAGED, **changes}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0 (configuration 2d)"),
        ({"batch_size": "2"}, 'batch_size must be a whole number of at least 1, got "2"'),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1, got 2.0"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, got true"),
        ({"patch_size": [64, -1]}, "patch_size must be two or three whole numbers of at least 1, got [64, -1]"),
        ({"patch_size": 64}, "patch_size must be two or three whole numbers of at least 1, got 64"),
        (staged(features_per_stage=[8, 16]), "features_per_stage must have 3 entries, as n_stages is 3, got 2"),
        (staged(strides=[1, 2, 2, 2]), "strides must have 3 entries, as n_stages is 3, got 4"),
        (staged(n_conv_per_stage_decoder=[2, 2, 2]), "n_conv_per_stage_decoder must have 2 entries, as n_stages is 3"),
    ],
)
def test_plans_that_no_training_can_have(tmp_path, change, message):
    path = tmp_path / "plans.json"
    fine = {"batch_size": 2, "patch_size": [64, 32], **staged()}
    path.write_text(json.dumps({**PLANS, "configurations": {"2d": fine, "other": {"inherits_from": "2d"}}}))
    read_plans(path)
    path.write_text(json.dumps({**PLANS, "configurations": {"2d": {**fine, **change}}}))
    with pytest.raises(ValueError, match=rf"plans\.json holds no plans nnU-Net can use: {re.escape(message)}"):
        read_plans(path)


def test_arguments_of_networks_that_are_not_known_are_their_own_matter(tmp_path):
    plans = {**PLANS, "configurations": {"2d": staged("mine.Network", features_per_stage=[8])}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert read_plans(tmp_path / "plans.json") == plans


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file_ending": ".nii.gz"}, "has no 'labels'"),
        ({"labels": {}}, "has no 'file_ending'"),
        ({"labels": [], "file_ending": ".nii.gz"}, "labels and channel_names are objects"),
        ({"labels": {}, "file_ending": ".nii.gz", "channel_names": ["T1"]}, "labels and channel_names are objects"),
        ({"labels": {}, "file_ending": 7}, "file_ending is 7"),
        ({"labels": {"a": None}, "file_ending": ".nii.gz"}, "label 'a' is None"),
        ({"labels": {"a": [1, {}]}, "file_ending": ".nii.gz"}, r"label 'a' is \[1, {}\]"),
    ],
)
def test_descriptions_of_a_data_set_that_are_none(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_dataset_json(tmp_path / "dataset.json")


B = {"background": 0}
WHOLE = {**B, "whole": [1, 2], "core": 2}
LABELS = [
    ({**B, "a": 1}, {}, None),
    ({**B, "a": 1, "ignore": 2}, {}, None),
    ({**B, "a": 1, "ignore": None}, {}, None),
    ({**B, "a": [1], "b": [2]}, {}, None),
    (WHOLE, {"regions_class_order": [1, 2]}, None),
    ({**WHOLE, "ignore": 3}, {"regions_class_order": [1, 2]}, None),
    ({**B, "a": 1}, {"overwrite_image_reader_writer": "None"}, None),
    (
        {**B, "a": 1, "b": 3, "ignore": 2},
        {},
        "the label 'ignore' must be 4, one above the highest of the others, got 2",
    ),
    ({**B, "a": 1, "ignore": [2]}, {}, "the label 'ignore' must be 2, one above the highest of the others, got [2]"),
    ({**B, "a": 1, "ignore": "2"}, {}, "the label 'ignore' must be 2, one above the highest of the others, got \"2\""),
    ({"a": 1}, {}, "the label 'background' must be 0, got none"),
    ({**B, "background": 1}, {}, "the label 'background' must be 0, got 1"),
    ({**B, "background": [0]}, {}, "the label 'background' must be 0, got [0]"),
    ({**B, "a": []}, {}, "label 'a' is an empty list"),
    (WHOLE, {}, "regions_class_order must list a label for each of the 2 regions (whole, core), got none"),
    (WHOLE, {"regions_class_order": [1]}, "for each of the 2 regions (whole, core), got [1]"),
    ({**WHOLE, "ignore": 3}, {"regions_class_order": [1, 2, 3]}, "the 2 regions (whole, core), got [1, 2, 3]"),
]


@pytest.mark.parametrize(("labels", "more", "message"), LABELS)
def test_labels_are_refused_where_nnunet_refuses_them(tmp_path, labels, more, message):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    content = {"labels": labels, "file_ending": ".nii.gz", **more}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    if message is None:
        LabelManager(labels, more.get("regions_class_order"))
        assert read_dataset_json(tmp_path / "dataset.json") == content
        return
    if [] not in labels.values():  # of which it makes a class without a voxel
        with pytest.raises((AssertionError, RuntimeError)):
            LabelManager(labels, more.get("regions_class_order"))
    with pytest.raises(ValueError, match=rf"dataset\.json is no dataset\.json of nnU-Net: .*{re.escape(message)}$"):
        read_dataset_json(tmp_path / "dataset.json")


@pytest.mark.parametrize("reader", [None, 3])
def test_a_reader_without_a_name(tmp_path, reader):
    content = {"labels": B, "file_ending": ".nii.gz", "overwrite_image_reader_writer": reader}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"overwrite_image_reader_writer must name a reader of nnU-Net or be left out"):
        read_dataset_json(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no folds"),
        ([1], "holds no folds"),
        ([{"train": ["a"]}], "holds no folds"),
        ([{"train": ["a"], "val": [1]}], "holds no folds"),
        ([{"train": ["a"], "val": ["../b"]}], r"names a case '\.\./b', which is no name of a file"),
    ],
)
def test_splits_that_are_none(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_splits(tmp_path / "splits_final.json")


def test_compressed_weights_are_not_unpacked(tmp_path):
    """A hundred MiB of zeros in a file of a hundred KiB."""
    path, bomb = tmp_path / "weights.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(25 * 2**20)}, path)
    check_stored(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in archive.infolist():
            smaller.writestr(entry.filename, archive.read(entry))
    assert bomb.stat().st_size < path.stat().st_size / 100
    assert torch.equal(torch.load(bomb)["a"], torch.load(path)["a"])  # PyTorch does unpack it
    with pytest.raises(ValueError, match=r"bomb\.pth: it is compressed"):
        check_stored(bomb)


def test_no_other_room_reads_json():
    """Outside :mod:`nnunet_kd.nnunet.reading`, JSON is parsed only where this package wrote it itself."""
    package = os.path.dirname(reading.__file__)
    found = set()
    for folder, _, files in os.walk(package):
        for name in files:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    lines = [line for line in file if "json.load" in line and "json.loads(json.dumps(" not in line]
                found |= {os.path.relpath(os.path.join(folder, name), package)} if lines else set()
    assert found <= {"reading.py", os.path.join("training", "trainer.py")}  # the latter its own results


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("cannot read a/b.nii: it is cut off"), "it is cut off"),
        (ValueError("too small\nat line 7"), "too small"),
        (RuntimeError(), "RuntimeError"),
        (PermissionError(13, "Permission denied", "a/b.nii"), "Permission denied"),
        (
            RuntimeError("Exception thrown in SimpleITK ImageFileReader_Execute: /a.cxx:9:\nsitk::ERROR: Unable to"),
            "Unable to",
        ),
        (RuntimeError("Exception thrown in SimpleITK X: /a.cxx:9:\nITK ERROR: NrrdImageIO(0x5a): No"), "No"),
        (
            RuntimeError("Exception from a.cpp:84:\nException from b.cpp:1:\nUnable to read the model\n\n"),
            "Unable to .*",
        ),
    ],
)
def test_why_a_library_cannot_read(error, said):
    assert re.fullmatch(said, reason(error, Path("a/b.nii")))


def test_why_simpleitk_cannot_read_a_sheared_image():
    error = RuntimeError("Exception thrown in SimpleITK X: /a.cxx:1:\nITK ERROR: ITK only supports orthonormal direct")
    assert "it is sheared" in reason(error) and "correct the sform of its header, or resample" in reason(error)
