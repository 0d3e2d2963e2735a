"""On a full disk, one sentence names the file, no partial file counts as complete, and work resumes with space."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.cli import main
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from tests.full_disk import PAGE, leave, names_one_file
from tests.small_networks import tiny_sam
from tests.survival import run_command, tree


@pytest.fixture
def crowded(workspace, small_disk, monkeypatch):
    """Move the preprocessed data to a small disk; return the command that makes their soft labels."""
    disk = small_disk(2**25)
    shutil.copytree(workspace.preprocessed, disk / workspace.dataset)
    monkeypatch.setenv("nnUNet_preprocessed", str(disk))
    torch.manual_seed(0)
    torch.save(tiny_sam().state_dict(), workspace.root / "sam.pth")
    words = ("soft-labels", "-d", "598", "-device", "cpu", "--sam", "tiny", "--continue")
    return disk, (*words, "--checkpoint", str(workspace.root / "sam.pth"))


def test_soft_labels(crowded, workspace, capsys):
    disk, words = crowded
    assert run_command(*words, "--name", "whole") == 0
    names = [disk / workspace.dataset / f"nnUNetPlans_3d_fullres_soft_{name}" for name in ("whole", "sam")]
    expected = tree(names[0])
    size = max(map(len, expected.values()))
    refused = 0
    for free in (0, PAGE, 2 * PAGE, size, 2 * size, 2 * size + 2 * PAGE):
        leave(disk, free)
        capsys.readouterr()
        if run_command(*words) == 1:
            refused += 1
            assert names_one_file(capsys.readouterr().err)
        store = SoftLabelStore(names[1])
        found = tree(names[1])
        assert not [name for name in found if "unfinished" in name]
        for name, content in found.items():
            assert content == expected[name.replace("_sam/", "_whole/")]
            case = name.rpartition("/")[2].rpartition(".")[0]
            assert case == "manifest" or store.fault(case, thorough=True) in (None, "is damaged")
    assert refused >= 4
    leave(disk, 2**22)
    assert run_command(*words) == 0
    assert list(tree(names[1]).values()) == list(expected.values())


def test_tables_of_an_evaluation(small_disk, tmp_path, capsys):
    disk = small_disk(2**20)
    labels = np.random.default_rng(0).integers(0, 2, (4, 9, 8)).astype(np.uint8)
    for folder in ("reference", "predicted"):
        (tmp_path / folder).mkdir()
        for case in range(30):
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / f"case{case}.nii.gz"))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}')
    given = ("-ref", "reference", "-pred", "predicted", "-djfile", "dataset.json")
    words = ["evaluate", *(word if word[0] == "-" else str(tmp_path / word) for word in given)]
    words += ["-o", str(disk / "out"), "-np", "1", "--overwrite"]
    assert main(words) == 0
    before = tree(disk / "out")
    for free in (0, PAGE):
        leave(disk, free)
        capsys.readouterr()
        assert main(words) == 1
        printed = capsys.readouterr().err
        assert names_one_file(printed) and "is still complete" in printed
        assert tree(disk / "out") == before
    leave(disk, 2**19)
    assert main(words) == 0


def test_truncated_segmentations_are_not_evaluated(tmp_path, capsys):
    """SimpleITK reads zeros in place of missing data."""
    labels = np.random.default_rng(0).integers(0, 2, (4, 9, 8)).astype(np.uint8)
    for folder in ("reference", "predicted"):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / "case.nii.gz"))
    path = tmp_path / "predicted" / "case.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}')
    given = ("-ref", "reference", "-pred", "predicted", "-djfile", "dataset.json", "-o", "out")
    assert main(["evaluate", *(word if word[0] == "-" else str(tmp_path / word) for word in given), "-np", "1"]) == 1
    assert f"case case: cannot read {path}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
