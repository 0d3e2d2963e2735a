"""``nnunet_kd distill``: from a trained model and images to a small student."""

import json
import shutil

import pytest

from nnunet_kd.cli import main
from nnunet_kd.workflow.distillation import DATASET
from tests.conftest import note_validated
from tests.locks import held
from tests.workflow.stopped_distillation import stopped_after

SHORT = ["--epochs", "2", "--iterations", "2", "--disable_tta", "-np", "1", "-device", "cpu"]


@pytest.fixture
def images(workspace):
    """Folder of six images that the teacher of the workspace can segment, beside the teacher's own."""
    return shutil.copytree(workspace.raw / "imagesTr", workspace.root / "images")


@pytest.fixture
def teacher_zip(workspace):
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    path = workspace.root / "teacher.zip"
    note_validated(workspace.teacher / "fold_0", [])  # nnU-Net exports the summary of the validation, too
    export_pretrained_model(workspace.dataset, str(path), ("3d_fullres",), folds=(0,), strict=False)
    return path


def words(model, images, out, *more):
    return ["distill", "-m", str(model), "-i", str(images), "-o", str(out), *SHORT, *map(str, more)]


@pytest.mark.slow
def test_a_zip_and_images_become_a_student(workspace, teacher_zip, images, tmp_path, capsys, forked_commands):
    """No labels, some channels and other structures; stopped between two steps, and run again when it is done."""
    shutil.rmtree(workspace.root / "nnUNet_results")
    names = [name for name in workspace.dataset_json["labels"] if name != "background"]
    (tmp_path / "labels.json").write_text(json.dumps({"merged": names}))
    options = ["--channels", "2", "0", "--labels", tmp_path / "labels.json", "--onnx"]
    out = tmp_path / "out"

    with stopped_after(2):
        assert main(words(teacher_zip, images, out, *options)) == 130
    assert not (out / "nnUNet_results").exists() and capsys.readouterr().out.count("$ nn") == 2
    assert main(words(teacher_zip, images, out, *options)) == 0
    printed = capsys.readouterr().out
    assert "preprocess: done before" in printed and "soft-labels: done before" in printed
    assert f"then: nnunet_kd install {out / 'student.zip'}, which" in printed
    assert (out / "onnx" / "model.json").is_file()

    plans = json.loads(next((out / "nnUNet_results").rglob("plans.json")).read_text())
    assert [*plans["foreground_intensity_properties_per_channel"]] == ["0", "1"]
    assert plans["nnunet_kd"]["training"]["num_val_iterations_per_epoch"] == 1  # not nnU-Net's 50 after 2 steps
    described = json.loads((out / "nnUNet_raw" / DATASET / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "merged": 1, "ignore": 2}
    assert [*described["channel_names"].values()] == [
        workspace.dataset_json["channel_names"][number] for number in ("2", "0")
    ]
    numbers = json.loads((out / "metrics.json").read_text())
    assert {row["structure"] for row in numbers["agreement"]} == {"merged"} and numbers["accuracy"] == []
    assert numbers["cost"]["teacher"]["parameters"] > 4 * numbers["cost"]["student"]["parameters"]
    report = (out / "report.html").read_text()
    assert "Agreement is not accuracy" in report and "nothing is known about accuracy" in report

    assert main(words(teacher_zip, images, out, *options)) == 0
    assert "$ nn" not in capsys.readouterr().out
    assert main(words(teacher_zip, images, out, *options, "-r", "8")) == 1
    assert f"{out} holds a distillation with reduction 4, not 8" in capsys.readouterr().err
    changed = sorted(images.iterdir())[0]
    changed.write_bytes(changed.read_bytes() + b"changed")
    assert main(words(teacher_zip, images, out, *options)) == 1
    assert f"{changed} has changed: restore what was there before, or give another" in capsys.readouterr().err


@pytest.mark.slow
def test_labelled_and_unlabelled_images(workspace, images, tmp_path, forked_commands):
    """The report has the accuracy where there is a reference."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in sorted((workspace.raw / "labelsTr").iterdir())[:4]:
        shutil.copy(path, labels)
    more = ["-l", labels, "--kept-back", "0.5"]
    assert main(words(workspace.teacher, images, tmp_path / "one", *more)) == 0
    log = (tmp_path / "one" / "logs" / "train.log").read_text()
    assert "initial weights: the best channels of" in log and "initial weights: the teacher has" not in log
    numbers = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert len({row["case"] for row in numbers["agreement"]}) == 3
    assert len({row["case"] for row in numbers["accuracy"]}) == 2
    assert {row["method"] for row in numbers["accuracy"]} == {"teacher", "student"}


def test_a_dry_run_prints_commands_and_writes_nothing(workspace, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(workspace.teacher, images, out, "--onnx", "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [" ".join(line.split()[:2]) for line in lines if not line.startswith("export ")]
    assert commands == [
        "nnunet_kd distill",
        "nnUNetv2_preprocess -d",
        "nnunet_kd soft-labels",
        "nnUNetv2_train 1",
        "nnUNetv2_predict_from_modelfolder -i",
        "nnunet_kd export",
        "nnunet_kd export",
    ]
    assert not out.exists()
    assert main(words(workspace.teacher, images, out, "--launcher", "slurm", "--jobs", "3", "--dry-run")) == 0
    launched = [line for line in capsys.readouterr().out.splitlines() if line.endswith("--launcher slurm --jobs 3")]
    assert [line.split()[1] for line in launched] == ["soft-labels"] and not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--launcher", "slurm"], "--launcher slurm needs --jobs, the number of jobs that segment the images"),
        (["-m", "none.zip"], "there is no model none.zip: give a zip file, a results folder"),
        (["-f", "3"], "has fold_0, but not fold_3"),
        (["--channels", "0", "5"], "the channel map names channel 5, but the teacher has channels 0 to 2"),
        (["--spacing", "2", "2"], "the spacing must be 3 lengths in mm"),
        (["--seed", "-1"], "training.seed must be from 0 to 2^32 - 1, got -1"),
        (["-r", "0.5"], "-r must be at least 1, got 0.5"),
        (["--kept-back", "1"], "--kept-back is a share between 0 and 1, got 1"),
        (["-i", "none"], "there is no folder none"),
        (["-l", "none"], "there is no folder none"),
        (["--labels", "none.json"], "none.json"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_written(workspace, images, tmp_path, capsys, more, message):
    out = tmp_path / "out"
    assert main([*words(workspace.teacher, images, out), *more]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not out.exists()


def test_a_wrong_zip_leaves_nothing_behind(workspace, images, tmp_path, capsys):
    (tmp_path / "wrong.zip").write_text("no zip")
    assert main(words(tmp_path / "wrong.zip", images, tmp_path / "out")) == 1
    assert f"{tmp_path}/wrong.zip is not a zip file, or it is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []


def test_a_label_map_that_names_what_is_not_there(workspace, images, tmp_path, capsys):
    (tmp_path / "labels.json").write_text('{"liver": ["liver"]}')
    assert main(words(workspace.teacher, images, tmp_path / "out", "--labels", tmp_path / "labels.json")) == 1
    assert "the label map names 'liver', but the teacher has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(workspace, images, tmp_path, capsys):
    assert main(words(workspace.teacher, images, images / "out")) == 1
    assert f"cannot write into {images / 'out'}: it lies in {images}" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    assert main(words(workspace.teacher, images, tmp_path / "other")) == 1
    assert "other is not empty and holds no distillation: give another folder" in capsys.readouterr().err


def test_images_without_the_number_of_their_channel(workspace, images, tmp_path, capsys):
    for path in sorted(images.glob("*_0000.nii.gz")):
        path.rename(images / path.name.replace("_0000", ""))
    for path in images.glob("*_000?.nii.gz"):
        path.unlink()
    assert main(words(workspace.teacher, images, tmp_path / "out")) == 1
    assert "6 other names lack the number of the channel, such as _0000" in capsys.readouterr().err


def test_only_one_distillation_works_in_a_folder(workspace, images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with held(out / "distill.lock") as process:
        assert main(words(workspace.teacher, images, out)) == 1
    assert f"process {process} is distilling in {out}: wait for it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["distill.lock"]
