"""On a full disk, one sentence names the file, no partial file counts as complete, and work resumes with space."""

import shutil

import pytest

from nnunet_kd.cli import main
from tests.conftest import FOLDERS
from tests.full_disk import PAGE, leave, names_one_file
from tests.survival import tree


@pytest.fixture
def folders(students, monkeypatch):
    """nnU-Net's folders with a student in them."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(students.root / name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target", "spaces"),
    [("nnunet", "student.zip", (0, 4 * PAGE, 2**16, 2**17)), ("onnx", "student", (4 * PAGE, 2**17))],
    ids=["nnunet", "onnx"],
)
def test_an_export(folders, known_programs, small_disk, capsys, kind, target, spaces):
    disk = small_disk(2**23)
    out = disk / target
    words = ["export", kind, "-d", "598", "-tr", "nnUNetTrainerNoKD", "-o", str(out)]
    for free in spaces:
        leave(disk, free)
        capsys.readouterr()
        assert main(words) == 1
        printed = capsys.readouterr().err
        assert names_one_file(printed), printed
        assert [path.name for path in disk.iterdir()] == ["filler"]
    leave(disk, 2**22)
    assert main(words) == 0
    if kind == "onnx":
        return
    whole = out.read_bytes()
    leave(disk, PAGE)
    assert main(words) == 1
    assert (
        capsys.readouterr().err.endswith("the previous student.zip is still complete\n") and out.read_bytes() == whole
    )


def test_an_installation(folders, small_disk, tmp_path, capsys, monkeypatch):
    archive = tmp_path / "student.zip"
    assert main(["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainerNoKD", "-o", str(archive)]) == 0
    disk = small_disk(2**23)
    monkeypatch.setenv("nnUNet_results", str(disk / "results"))
    for free in (2 * PAGE, 2**16):
        leave(disk, free)
        capsys.readouterr()
        assert main(["install", str(archive)]) == 1
        printed = capsys.readouterr().err
        assert names_one_file(printed), printed
        assert not list((disk / "results").iterdir())
    leave(disk, 2**22)
    assert main(["install", str(archive)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--save_probabilities",)])
def test_a_prediction(students, onnx_models, small_disk, tmp_path, capsys, words):
    images = tmp_path / "images"
    images.mkdir()
    for path in (students.raw / "imagesTs").glob("*.nii.gz"):
        for name in ("a", "b"):
            shutil.copy(path, images / f"{name}{path.name[-12:]}")
    words = ("predict", "-m", str(onnx_models["3d_fullres"]), "-i", str(images), "--disable_tta", *words)
    assert main([*words, "-o", str(tmp_path / "whole")]) == 0
    expected = tree(tmp_path / "whole")
    disk = small_disk(2**22)
    out = disk / "whole"
    named = {}  # pages left -> file that did not fit
    for pages in (*range(1, 10), *range(10, 60, 3)):
        shutil.rmtree(out, ignore_errors=True)
        leave(disk, pages * PAGE)
        capsys.readouterr()
        if main([*words, "-o", str(out)]) == 0:
            break
        printed = capsys.readouterr().err
        assert names_one_file(printed), printed
        named[pages] = printed.rpartition("cannot write ")[2].partition(":")[0].rpartition("/")[2]
        assert not list(out.glob(".unfinished*"))
        for name, content in tree(out).items():
            assert content == expected[name] or name.endswith((".npz", ".pkl")), name
    assert {"plans.json", "a.nii.gz"} <= {*named.values()}
    shutil.rmtree(out)
    leave(disk, next(pages for pages, name in named.items() if name == "a.nii.gz") * PAGE)
    assert main([*words, "-o", str(out)]) == 1
    leave(disk, 2**21)
    assert main([*words, "-o", str(out), "--continue_prediction"]) == 0
    assert tree(out).keys() == expected.keys()
    for name, content in tree(out).items():
        assert content == expected[name] or name.endswith((".npz", ".pkl")), name
