"""Odd names of images and models: very long names, unusual characters, and files that systems leave behind."""

import os
import shutil

import pytest

from nnunet_kd.cli import main
from nnunet_kd.runtime.engines import ENGINES


@pytest.fixture
def images(students, tmp_path):
    """The images of one case, ``a``."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (students.raw / "imagesTs").glob("*.nii.gz"):
        shutil.copy(path, folder / f"a{path.name[-12:]}")
    return folder


def predict(model, images, out, *words):
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), "--disable_tta", *words])


def renamed(folder, case):
    for path in list(folder.iterdir()):
        path.rename(folder / f"{case}{path.name[-12:]}")


@pytest.mark.parametrize("words", [(), ("--save_probabilities",)])
def test_a_case_with_the_longest_name(onnx_models, images, tmp_path, words):
    case = "a" * 240
    renamed(images, case)
    assert predict(onnx_models["3d_fullres"], images, tmp_path / "out", *words) == 0
    beside = [f"{case}.npz", f"{case}.pkl"] if words else []
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == sorted([f"{case}.nii.gz", *beside, "dataset.json", "plans.json"])


def test_leftovers_of_a_killed_prediction_are_removed(onnx_models, images, tmp_path, monkeypatch):
    from nnunet_kd.runtime import predictor

    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(predictor, "put_in_place", lambda *_: os.kill(os.getpid(), 9))
        predict(onnx_models["3d_fullres"], images, out, "--engine", "onnxruntime", "--threads", "1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9 and list(out.glob(".unfinished*"))
    assert predict(onnx_models["3d_fullres"], images, out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "dataset.json", "plans.json"]


def test_system_files_are_skipped_and_other_files_are_named(onnx_models, images, tmp_path, capsys):
    for name in ("._a_0000.nii.gz", "._a_0001.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (images / name).write_bytes(b"\0junk")
    assert predict(onnx_models["3d_fullres"], images, tmp_path / "out") == 0
    assert "left out" not in capsys.readouterr().err
    for name in ("b.nii.gz", "a_0000.nii", "notes.txt", "zzz.txt"):
        (images / name).touch()
    assert predict(onnx_models["3d_fullres"], images, tmp_path / "out") == 0
    said = "nnunet_kd: a_0000.nii, b.nii.gz, notes.txt and 1 more left out: images are named CASE_0000.nii.gz\n"
    assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_whose_path_python_cannot_decode(onnx_models, images, tmp_path, engine):
    """In some locales this is any path outside ASCII; SimpleITK would crash the process on it."""
    model = os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8l")
    shutil.copytree(onnx_models["3d_fullres"], model)
    assert predict(model, images, tmp_path / "out", "--engine", engine) == 0


def test_images_and_segmentations_whose_path_python_cannot_decode(onnx_models, images, tmp_path, capsys):
    other = os.fsdecode(os.fsencode(tmp_path) + b"/\xfc")
    assert predict(onnx_models["3d_fullres"], images, other) == 1
    end = "the name is not in utf-8; rename it\n"
    assert capsys.readouterr().err == f"nnunet_kd: cannot open {f'{other}/a.nii.gz'!r}: {end}"
    assert not os.path.exists(other)
    shutil.copytree(images, other)
    assert predict(onnx_models["3d_fullres"], other, tmp_path / "out") == 1
    assert capsys.readouterr().err == f"nnunet_kd: cannot open {f'{other}/a_0000.nii.gz'!r}: {end}"
