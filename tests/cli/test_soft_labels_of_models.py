"""``nnunet_kd soft-labels --model``: any model through the command, resumed, in parts, and refused in one sentence."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_kd.cli import main
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from tests.teachers.bridges import LABELS, Plan, channels_of, copied, make_bridge, write_image

STUDENT = Plan(spacing=(4.0, 3.0, 3.0))
TEACHER = replace(STUDENT, name="Dataset602_Teacher", spacing=(3.5, 3.3, 3.3))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return a student and a model of two folds, made once; tests get copies of them."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_bridge(tmp_path_factory.mktemp("bridge"), STUDENT, patch)
        made.add_model(TEACHER, folds=(0, 1))
    return made


@pytest.fixture
def bridge(template, tmp_path, monkeypatch):
    return copied(template, tmp_path, monkeypatch)


def read_image(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_and_a_resumed_run_give_the_same_files(bridge, capsys, monkeypatch):
    words = ("--model", TEACHER.folder, "--disable_tta")
    assert bridge.make(*words, "--name", "whole") == 0
    assert bridge.make(*words, "-num_parts", "2", "-part_id", "1") == 0
    assert "1 of 2 cases in" in capsys.readouterr().out
    write = SoftLabelStore.write

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftLabelStore, "write", stopped)
    assert bridge.make(*words, "-num_parts", "2") == 130
    monkeypatch.setattr(SoftLabelStore, "write", write)
    assert bridge.make(*words) == 1
    assert "has 1 of 2 cases already: compute the others with --continue" in capsys.readouterr().err
    assert bridge.make(*words, "--continue") == 0
    whole = files_of(bridge.store("whole").folder)
    assert files_of(bridge.store().folder) == whole and len(whole) == 5
    path = bridge.store().path("a")
    path.write_bytes(path.read_bytes()[:60])
    assert bridge.make(*words, "--continue") == 0
    assert files_of(bridge.store().folder) == whole


def test_images_that_have_changed_are_predicted_again(bridge, capsys):
    """Whatever their modification times say: a copy of the same content is no change, an older file can be one."""
    words = ("--model", TEACHER.folder, "--disable_tta", "-f", "0", "--continue")
    first, other = (bridge.raw / "imagesTr" / f"{case}_0000.nii.gz" for case in "ab")
    assert bridge.make(*words) == 0
    before = files_of(bridge.store().folder)
    os.utime(other)
    write_image(read_image(first)[::-1], first)
    os.utime(first, (0, 0))
    capsys.readouterr()
    assert bridge.make(*words) == 0
    assert capsys.readouterr().out.startswith(
        f"{first} has changed since the soft labels of case a were computed: computing them again\n2 of 2 cases in"
    )
    after = files_of(bridge.store().folder)
    assert {name for name in before if before[name] != after[name]} == {"a.b2nd", "a.json"}
    record = bridge.store().folder / "b.json"  # a store of earlier versions does not describe the images
    content = json.loads(record.read_text())
    del content["originals"]
    record.write_text(json.dumps(content))
    assert bridge.store().changed_image("b", [other]) is None
    os.utime(record, (0, 0))
    assert bridge.store().changed_image("b", [other]) == other


def test_the_manifest_says_where_the_soft_labels_come_from(bridge, capsys):
    assert bridge.make("--model", str(bridge.results / TEACHER.folder), "-f", "1") == 0
    source = bridge.store().manifest["source"]
    assert source["kind"] == "raw_images" and source["model"] == TEACHER.folder and source["mirroring"] is True
    assert source["folds_of_model"] == [1] and "folds" not in source
    assert source["channels"] == [0, 1, 2]
    assert source["labels"] == {"oedema": ["oedema"], "core": ["core"], "cyst": ["cyst"]}
    note = bridge.store().leakage(0)
    assert "LEAKAGE is possible: the teacher was trained on Dataset602_Teacher, whose folds are not those of" in note
    assert bridge.store().arguments == "--model MODEL -f 1 --channels 0 1 2 --name model"
    logits = bridge.store().open("a")
    assert logits.dtype == np.float16 and logits.shape == (4, *bridge.placement("a")[0])
    assert bridge.make("--model", TEACHER.folder, "--continue") == 1
    assert "was created with folds_of_model = [1], not [0, 1]" in capsys.readouterr().err


def test_folds_of_the_same_data_set_have_seen_its_cases(bridge):
    bridge.add_model(STUDENT, folds=(0, 1))
    assert bridge.make("--model", STUDENT.folder, "--disable_tta") == 0
    assert bridge.store().manifest["source"]["folds"] == [0, 1]
    assert "teachers (fold 1) that were trained on validation cases of student fold 0" in bridge.store().leakage(0)


def test_images_listed_in_dataset_json(bridge):
    assert bridge.make("--model", TEACHER.folder, "--disable_tta", "-f", "0") == 0
    (bridge.raw / "imagesTr").rename(bridge.root / "elsewhere")
    listed = {
        case: {"images": [f"../../elsewhere/{case}_{i:04d}.nii.gz" for i in range(3)], "label": "x"} for case in "ab"
    }
    content = json.dumps({**STUDENT.dataset_json, "dataset": listed})
    (bridge.preprocessed / "dataset.json").write_text(content)
    assert bridge.make("--model", TEACHER.folder, "--disable_tta", "-f", "0", "--name", "listed") == 0
    for case in "ab":
        np.testing.assert_array_equal(bridge.store("listed").open(case)[:], bridge.store().open(case)[:])


def test_the_channels_of_the_student_are_put_in_the_models_order(bridge, tmp_path, monkeypatch):
    words = ("--model", TEACHER.folder, "--disable_tta", "-f", "0")
    assert bridge.make(*words) == 0
    (tmp_path / "other").mkdir()
    other = make_bridge(tmp_path / "other", replace(STUDENT, channels=("FLAIR", "T1", "T2")), monkeypatch)
    shutil.copytree(bridge.results, other.results, dirs_exist_ok=True)
    assert other.make(*words) == 0
    assert other.store().manifest["source"]["channels"] == [2, 0, 1]
    np.testing.assert_array_equal(other.store().open("a")[:], bridge.store().open("a")[:])


def label_map(bridge, content):
    path = bridge.root / "labels.json"
    path.write_text(json.dumps(content))
    return "--label-map", str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-f", "3"), "has fold_0, fold_1, but not fold_3"),
        (("-f", "0", "all"), "-f takes several numbers with --model only, got 0 all"),
        (("-f", "first"), "a fold is a number or all, got 'first'"),
        (("--channels", "0", "1"), "must have one entry for each of the student's 3 channels (T1, T2, FLAIR), got 2"),
        (("--channels", "0", "1", "7"), "names channel 7, but the model has channels 0 to 2 (T1, T2, FLAIR)"),
        (("--margin", "3"), "--checkpoint, --prompt, --margin and --normalisation belong to --sam"),
        (("--embeddings",), "only SAM has --embeddings"),
        (("-i", "nowhere"), "there is no folder of images nowhere"),
        (("-chk", "checkpoint_best.pth"), "has no fold with a checkpoint_best.pth"),
        (({"tumour": ["core"]},), "labels.json: the label map names 'tumour', but the student has oedema, core, cyst"),
        (({"core": ["nucleus"]},), "labels.json: the label map names 'nucleus', but the model has oedema, core, cyst"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(bridge, capsys, words, message):
    if isinstance(words[0], dict):
        words = label_map(bridge, words[0])
    assert bridge.make("--model", TEACHER.folder, *words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not bridge.store().folder.exists()


def test_options_of_a_model_belong_to_a_model(bridge, capsys):
    assert bridge.make("--teacher", "--trust") == 1
    assert "--label-map, -i, --model-config and --trust belong to --model" in capsys.readouterr().err


def test_a_teacher_with_more_channels_needs_their_images(tmp_path, monkeypatch, capsys):
    bridge = make_bridge(tmp_path, replace(STUDENT, channels=("FLAIR",)), monkeypatch)
    bridge.add_model(TEACHER)
    assert bridge.make("--model", TEACHER.folder) == 1
    error = capsys.readouterr().err
    assert "the student's images lack the teacher's channel 0 (T1), 1 (T2): give a folder of images" in error
    images = channels_of(tmp_path / "all", TEACHER.channels)
    assert bridge.make("--model", TEACHER.folder, "-i", str(images), "--channels", "2") == 0
    (images / "b_0001.nii.gz").unlink()
    assert bridge.make("--model", TEACHER.folder, "-i", str(images), "--name", "other") == 1
    assert f"case b: there is no {images / 'b_0001.nii.gz'}" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["truncated", "text", "size", "missing"])
def test_an_image_that_cannot_be_used_is_named(bridge, capsys, fault):
    path = bridge.raw / "imagesTr" / "b_0001.nii.gz"
    if fault == "size":
        for number in range(3):
            own = path.with_name(f"b_{number:04d}.nii.gz")
            other = channels_of(bridge.root / "other", ("T1",), lambda images: images[:, :-1], ("a",)) / "a_0000.nii.gz"
            shutil.copy(other, own)
        expected = f"case b: {path.with_name('b_0000.nii.gz')} has 51 x 84 x 80 voxels, but the preprocessed case was"
    elif fault == "missing":
        path.unlink()
        expected = f"case b: there is no {path}"
    else:
        path.write_bytes(path.read_bytes()[:3000] if fault == "truncated" else b"no image")
        expected = f"cannot read {path}: "
    assert bridge.make("--model", TEACHER.folder, "--disable_tta", "-f", "0") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnunet_kd: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert not bridge.store().path("b").exists()


def test_the_second_stage_of_a_cascade_is_refused(bridge, capsys):
    folder = bridge.results / TEACHER.folder
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (folder / "plans.json").write_text(json.dumps(plans))
    assert bridge.make("--model", TEACHER.folder) == 1
    assert "takes the segmentation of a previous stage as input and cannot make soft labels" in capsys.readouterr().err


def test_a_checkpoint_that_could_run_code(bridge, capsys):
    path = bridge.results / TEACHER.folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "extra": Plan()}, path)
    assert bridge.make("--model", TEACHER.folder) == 1
    assert "contains more than weights and numbers" in capsys.readouterr().err
    assert bridge.make("--model", TEACHER.folder, "--trust", "--disable_tta") == 0


def test_an_ignore_label_of_either_side_is_no_structure(tmp_path, monkeypatch):
    ignoring = {**LABELS, "ignore": 4}
    bridge = make_bridge(tmp_path, replace(STUDENT, labels=ignoring), monkeypatch, cases=("a",))
    bridge.add_model(replace(TEACHER, labels=ignoring))
    assert bridge.make("--model", TEACHER.folder, "--disable_tta") == 0
    assert bridge.store().open("a").shape[0] == 4


def test_help_teaches_the_bridge(capsys):
    with pytest.raises(SystemExit):
        main(["soft-labels", "--help"])
    told = capsys.readouterr().out
    for words in ("--model teacher.zip", "-i IMAGES", "--label-map labels.json", "--trust"):
        assert words in told
