"""Every command that cannot write to a folder says so in one sentence, without an error number."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.cli import main
from tests.conftest import SHORT
from tests.datasets import layouts


def refuses(capsys, path, folder, *words):
    assert main([*map(str, words)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"nnunet_kd: cannot write {path}: you may not write to the folder {folder}. Choose another folder, or "
        "change its permissions"
    )


@pytest.fixture
def locked(tmp_path, read_only):
    """An empty folder without write permission."""
    (tmp_path / "locked").mkdir()
    return read_only(tmp_path / "locked")


def test_plans_and_soft_labels(workspace, read_only, monkeypatch, capsys):
    folder = read_only(workspace.root / "nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    own = folder / workspace.dataset
    refuses(capsys, own / "nnUNetPlans_r4.json", own, "plan", "-d", "598")
    words = ("soft-labels", "-d", "598", "--teacher", "-device", "cpu")
    refuses(capsys, own / "nnUNetPlans_3d_fullres_soft_nnunet", own, *words)


def test_a_comparison(workspace, locked, read_only, monkeypatch, capsys):
    """Its folder, plans and results are checked before anything is trained."""
    workspace.plans("short", training=SHORT)
    words = ("compare", "-d", "598", "-p", "short", "-device", "cpu", "-m", "NoKD", "-o")
    refuses(capsys, locked / "study", locked, *words, locked / "study")
    results = read_only(workspace.root / "nnUNet_results")
    monkeypatch.setenv("nnUNet_results", str(results))
    fold = results / workspace.dataset / "nnUNetTrainerNoKD__short__3d_fullres" / "fold_0"
    refuses(capsys, fold, results / workspace.dataset, *words, workspace.root / "study")
    preprocessed = read_only(workspace.root / "nnUNet_preprocessed") / workspace.dataset
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    words = (*words, workspace.root / "study", "--seeds", "1")
    refuses(capsys, preprocessed / "short_seed1.json", preprocessed, *words)


def test_an_evaluation_a_data_set_and_the_demo(locked, tmp_path, capsys):
    for folder in ("reference", "predicted"):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(tmp_path / folder / "a.nii.gz"))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}')
    given = ("-ref", tmp_path / "reference", "-pred", tmp_path / "predicted", "-djfile", tmp_path / "dataset.json")
    refuses(capsys, locked / "out", locked, "evaluate", *given, "-o", locked / "out")
    layouts.busi(tmp_path / "source")
    made = locked / "Dataset510_BUSI"
    refuses(capsys, made, locked, "dataset", "BUSI", tmp_path / "source", "--raw", locked, "-np", "1")
    refuses(capsys, locked / "demo", locked, "demo", "--out", locked / "demo")
    assert not list(locked.iterdir())


def test_other_errors_of_the_system_are_sentences_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "n" * 300]) == 1
    printed = capsys.readouterr().err
    assert printed == f"nnunet_kd: cannot use {tmp_path}/{'n' * 300}/nnUNet_raw: file name too long\n"
