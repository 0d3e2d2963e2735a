"""No command overwrites its inputs under any name, and it refuses before it reads or writes anything."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nnunet_kd.cli import main
from tests.datasets import layouts


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder, capsys, *words) -> str:
    """Run a command that must fail and leave every file as it was; return its one line."""
    before = content_of(folder)
    assert main(list(map(str, words))) == 1
    assert content_of(folder) == before
    return capsys.readouterr().err


def test_evaluate_keeps_its_description(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"a": 1}, "file_ending": ".nii.gz"}))
    os.link(tmp_path / "dataset.json", tmp_path / "metrics.json")
    words = ("-ref", tmp_path, "-pred", tmp_path, "-djfile", tmp_path / "dataset.json", "-o", tmp_path)
    error = refused(tmp_path, capsys, "evaluate", *words)
    expected = f"cannot write {tmp_path}/metrics.json: it is the same as {tmp_path}/dataset.json, one of the inputs. "
    assert error == f"nnunet_kd: {expected}Give another folder with -o\n"


def test_compare_keeps_its_rows(workspace, capsys):
    rows = workspace.root / "study" / "costs.json"
    rows.parent.mkdir()
    rows.write_text(json.dumps({"row": {"trainer": "NoSuch"}}))
    words = ("-d", "598", "--rows", rows, "-o", rows.parent)
    assert f"cannot write {rows}: it is one of the inputs" in refused(workspace.root, capsys, "compare", *words)


def test_plan_keeps_the_teachers_plans(workspace, capsys):
    """A file system that ignores case finds them under this name."""
    os.link(workspace.preprocessed / "nnUNetPlans.json", workspace.preprocessed / "NNUNETPLANS.json")
    error = refused(workspace.root, capsys, "plan", "-d", "598", "-o", "NNUNETPLANS", "--force")
    assert "the student's plans need a name of their own, not NNUNETPLANS" in error


@pytest.mark.parametrize("name", ["plans.json", "fold_0/checkpoint_final.pth"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_export_keeps_what_was_trained(workspace, capsys, name, link):
    given = workspace.root / "student.zip"
    link(workspace.teacher / name, given)
    error = refused(workspace.root, capsys, "export", "nnunet", "-d", "598", "-tr", "nnUNetTrainer", "-o", given)
    assert f"cannot write {given}: it is the same as {workspace.teacher / name}, one of the inputs" in error


@pytest.mark.parametrize("option", ["--images", "--labels"])
def test_export_does_not_advise_removing_the_cases(workspace, capsys, option):
    folders = {"--images": workspace.raw / "imagesTs", "--labels": workspace.raw / "labelsTs"}
    given = [str(word) for pair in folders.items() for word in pair]
    words = ("-d", "598", "-tr", "nnUNetTrainer", *given, "-o", folders[option])
    error = refused(workspace.root, capsys, "export", "onnx", *words)
    assert f"cannot write {folders[option]}: it is one of the inputs. Give another path with -o" in error


def test_soft_labels_keep_the_preprocessed_data(workspace, capsys):
    (workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_mine").symlink_to("nnUNetPlans_3d_fullres")
    error = refused(workspace.preprocessed, capsys, "soft-labels", "-d", "598", "--teacher", "--name", "mine")
    assert "nnUNetPlans_3d_fullres_soft_mine/" in error and "one of the inputs. Give another --name" in error


@pytest.mark.parametrize("number", ["506", "600"])
@pytest.mark.parametrize("raw", ["source", "linked", "source/../source"])
def test_dataset_is_not_made_in_its_own_source(workspace, tmp_path, capsys, number, raw):
    source = tmp_path / "source"
    layouts.kvasir_seg(source)
    (tmp_path / "linked").symlink_to(source)
    error = refused(tmp_path, capsys, "dataset", "KvasirSEG", source, "--raw", tmp_path / raw, "-d", number)
    assert "_KvasirSEG would lie among the files of its own source: give another folder with --raw" in error


@pytest.mark.parametrize("deeper", ["", "unpacked"])
def test_a_source_that_has_the_name_of_the_data_set(workspace, tmp_path, capsys, deeper):
    """The message does not advise removing it; another number works, and so does a subfolder of the source."""
    source = tmp_path / "Dataset506_KvasirSEG" / deeper
    layouts.kvasir_seg(source)
    words = ("dataset", "KvasirSEG", str(source), "-np", "1", "--raw")
    error = refused(tmp_path, capsys, *words, tmp_path)
    assert error.endswith("Dataset506_KvasirSEG already exists: choose another number with -d\n")
    assert main([*words, str(tmp_path), "-d", "600"]) == 0
    assert main([*words, str(source / "raw")]) == 0


def test_cases_whose_names_differ_only_in_case(workspace, tmp_path, capsys):
    """On some file systems, one would overwrite the other and thereby the source behind its hard link."""
    source = tmp_path / "source"
    layouts.brats2021(source)
    shutil.copytree(source / "BraTS2021_00001", source / "more" / "brats2021_00001")
    for path in (source / "more" / "brats2021_00001").iterdir():
        path.rename(path.with_name(path.name.replace("BraTS", "brats")))
    error = refused(tmp_path, capsys, "dataset", "BraTS2021", source, "--raw", tmp_path / "raw")
    assert "two cases would have the same files: BraTS2021_00001 and brats2021_00001" in error
