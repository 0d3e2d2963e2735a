"""A folder that cannot be written to gives one sentence before any work is done."""

import pytest

from nnunet_kd.cli import main
from tests.conftest import FOLDERS


@pytest.fixture
def folders(students, monkeypatch):
    """nnU-Net's folders with a student in them."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(students.root / name))


@pytest.fixture
def locked(tmp_path, read_only):
    """An empty folder without write permission."""
    (tmp_path / "locked").mkdir()
    return read_only(tmp_path / "locked")


def refuses(capsys, path, folder, *words):
    assert main([*map(str, words)]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0] == (
        f"nnunet_kd: cannot write {path}: you may not write to the folder {folder}. Choose another folder, or "
        "change its permissions"
    )


@pytest.mark.parametrize(("kind", "name"), [("nnunet", "student.zip"), ("onnx", "student")])
def test_exports(folders, locked, tmp_path, capsys, kind, name):
    words = ("export", kind, "-d", "598", "-tr", "nnUNetTrainerNoKD", "-o")
    refuses(capsys, locked / name, locked, *words, locked / name)
    (tmp_path / "file").touch()
    assert main([*words, str(tmp_path / "file" / name)]) == 1
    assert (
        capsys.readouterr().err == f"nnunet_kd: cannot write {tmp_path}/file/{name}: {tmp_path}/file is not a folder\n"
    )


def test_a_zip_file_that_is_a_folder(folders, tmp_path, capsys):
    (tmp_path / "student.zip").mkdir()
    words = ["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainerNoKD", "-o", str(tmp_path / "student.zip")]
    assert main(words) == 1
    assert capsys.readouterr().err == f"nnunet_kd: cannot write {tmp_path}/student.zip: it is a folder\n"
    assert not list((tmp_path / "student.zip").iterdir())


def test_an_installation(folders, locked, students, tmp_path, capsys, monkeypatch, read_only):
    archive = tmp_path / "student.zip"
    assert main(["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainerNoKD", "-o", str(archive)]) == 0
    capsys.readouterr()
    model = f"{students.dataset}/nnUNetTrainer__nnUNetPlans_NoKD__3d_fullres"
    monkeypatch.setenv("nnUNet_results", str(locked))
    refuses(capsys, locked / model, locked, "install", archive)
    (tmp_path / "results" / students.dataset).mkdir(parents=True)
    shared = read_only(tmp_path / "results")
    monkeypatch.setenv("nnUNet_results", str(shared))
    refuses(capsys, shared / model, shared / students.dataset, "install", archive)


def test_a_prediction(onnx_models, students, locked, tmp_path, capsys):
    images = students.raw / "imagesTs"
    case = next(images.glob("*_0000.nii.gz"))
    name = f"{case.name[: -len('_0000.nii.gz')]}.nii.gz"
    words = ("predict", "-m", onnx_models["3d_fullres"], "--disable_tta", "-i")
    refuses(capsys, locked / "out" / name, locked, *words, images, "-o", locked / "out")
    refuses(capsys, locked / "one.nii.gz", locked, *words, case, "-o", locked / "one.nii.gz")
    (tmp_path / "file").touch()
    assert main([*map(str, (*words, images, "-o", tmp_path / "file"))]) == 1
    assert capsys.readouterr().err.endswith(f"file/{name}: {tmp_path}/file is not a folder\n")
