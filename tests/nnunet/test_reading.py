"""nnU-Net's files are read if nnU-Net can use them, and refused in one sentence otherwise."""

import json
import re
import subprocess
import sys

import pytest

from nnunet_kd.nnunet.reading import read_dataset_json, read_plans, read_splits

PLANS = {"plans_name": "p", "dataset_name": "d", "configurations": {"2d": {}}}


@pytest.mark.parametrize(
    "change", [{"configurations": []}, {"configurations": {"2d": 1}}, {"plans_name": None}, {"plans_name": "a\x1b[31m"}]
)
def test_files_that_are_not_plans_are_refused(tmp_path, change):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(PLANS))
    assert read_plans(path) == PLANS
    path.write_text(json.dumps({**PLANS, **change}))
    with pytest.raises(ValueError, match=r"plans\.json is not a plans file of nnU-Net"):
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
def test_plans_with_impossible_values_are_refused(tmp_path, change, message):
    path = tmp_path / "plans.json"
    fine = {"batch_size": 2, "patch_size": [64, 32], **staged()}
    path.write_text(json.dumps({**PLANS, "configurations": {"2d": fine, "other": {"inherits_from": "2d"}}}))
    read_plans(path)
    path.write_text(json.dumps({**PLANS, "configurations": {"2d": {**fine, **change}}}))
    with pytest.raises(ValueError, match=rf"plans\.json contains plans that nnU-Net cannot use: {re.escape(message)}"):
        read_plans(path)


def test_arguments_of_unknown_networks_are_not_checked(tmp_path):
    plans = {**PLANS, "configurations": {"2d": staged("mine.Network", features_per_stage=[8])}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert read_plans(tmp_path / "plans.json") == plans


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file_ending": ".nii.gz"}, "has no 'labels'"),
        ({"labels": {}}, "has no 'file_ending'"),
        ({"labels": [], "file_ending": ".nii.gz"}, "labels and channel_names must be objects"),
        ({"labels": {}, "file_ending": ".nii.gz", "channel_names": ["T1"]}, "labels and channel_names must be objects"),
        ({"labels": {}, "file_ending": 7}, "file_ending must be text, got 7"),
        (
            {"labels": {"a": None}, "file_ending": ".nii.gz"},
            "label 'a' must be a whole number or a list of them, got None",
        ),
        ({"labels": {"a": [1, {}]}, "file_ending": ".nii.gz"}, r"label 'a' must be .*, got \[1, {}\]"),
    ],
)
def test_invalid_descriptions_of_a_data_set_are_refused(tmp_path, content, message):
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
def test_labels_that_nnunet_refuses_are_refused(tmp_path, labels, more, message):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    content = {"labels": labels, "file_ending": ".nii.gz", **more}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    if message is None:
        LabelManager(labels, more.get("regions_class_order"))
        assert read_dataset_json(tmp_path / "dataset.json") == content
        return
    if [] not in labels.values():  # nnU-Net turns it into a class without voxels
        with pytest.raises((AssertionError, RuntimeError)):
            LabelManager(labels, more.get("regions_class_order"))
    with pytest.raises(
        ValueError, match=rf"dataset\.json is not a valid dataset\.json of nnU-Net: .*{re.escape(message)}$"
    ):
        read_dataset_json(tmp_path / "dataset.json")


@pytest.mark.parametrize("reader", [None, 3])
def test_a_reader_that_is_not_text_is_refused(tmp_path, reader):
    content = {"labels": B, "file_ending": ".nii.gz", "overwrite_image_reader_writer": reader}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"overwrite_image_reader_writer must name a reader of nnU-Net or be left out"):
        read_dataset_json(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "does not list folds"),
        ([1], "does not list folds"),
        ([{"train": ["a"]}], "does not list folds"),
        ([{"train": ["a"], "val": [1]}], "does not list folds"),
        ([{"train": ["a"], "val": ["../b"]}], r"names a case '\.\./b', which is not a valid file name"),
    ],
)
def test_invalid_splits_are_refused(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_splits(tmp_path / "splits_final.json")


def test_reading_imports_neither_torch_nor_nnunet():
    """Commands can then refuse a file at once; importing nnU-Net takes ten seconds."""
    light = ("reading", "settings", "trust", "trust.archives", "trust.limited_json", "trust.postprocessing")
    imports = ", ".join(f"nnunet_kd.nnunet.{name}" for name in light)
    code = f"import sys, {imports}; print([name for name in ('torch', 'nnunetv2', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
