"""Any trained model of stock nnU-Net is exported as ONNX: a zip file, a folder or a name, with one fold or several."""

import json
import os
import shutil

import pytest

from nnunet_kd.cli import main
from nnunet_kd.runtime.folder import read_model
from tests.conftest import FOLDERS
from tests.students import results


@pytest.fixture
def archive(students, tmp_path, monkeypatch):
    """A zip file with both folds of the 3-D student, and an empty results folder, as on another machine."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(students.root / name))
    path = tmp_path / "model.zip"
    words = ("-d", "598", "-tr", "nnUNetTrainerNoKD", "-f", "0", "1", "-o", str(path))
    assert main(["export", "nnunet", *words]) == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nothing"))
    return path


def digests(folder):
    return {name: file["sha256"] for name, file in json.loads((folder / "model.json").read_text())["files"].items()}


@pytest.mark.slow
def test_a_zip_file_with_all_its_folds(archive, students, onnx_models, tmp_path, capsys):
    """The networks are those of the results folder, and the model predicts the same."""
    assert main(["export", "onnx", "-m", str(archive), "-o", str(tmp_path / "model")]) == 0
    assert "then: nnunet_kd predict -m" in capsys.readouterr().out
    description, _, _ = read_model(tmp_path / "model")
    assert description.networks == ["fold_0.onnx", "fold_1.onnx"]
    found, expected = digests(tmp_path / "model"), digests(onnx_models["3d_fullres"])
    assert [found[name] for name in description.networks] == [expected[name] for name in description.networks]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.zip"]
    one = ("-i", str(students.raw / "imagesTs"), "--disable_tta", "-o")
    for model, out in ((tmp_path / "model", "a"), (onnx_models["3d_fullres"], "b")):
        assert main(["predict", "-m", str(model), *one, str(tmp_path / out)]) == 0
    segmentations = [next((tmp_path / out).glob("*.nii.gz")).read_bytes() for out in "ab"]
    assert segmentations[0] == segmentations[1]


@pytest.mark.slow
def test_a_results_folder_and_one_fold(archive, students, known_programs, tmp_path):
    """The folder can lie anywhere."""
    folder = shutil.copytree(students.results, tmp_path / "moved")
    words = ("-m", str(folder / results(students).name), "-f", "1")
    assert main(["export", "onnx", *words, "-o", str(tmp_path / "model")]) == 0
    assert read_model(tmp_path / "model")[0].networks == ["fold_1.onnx"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("onnx", "-m", "ARCHIVE", "-f", "3"), "has fold_0, fold_1, but not fold_3"),
        (("onnx", "-m", "nothing.zip"), "there is no model nothing.zip: give a zip file, a results folder"),
        (("onnx", "-m", "BROKEN"), "broken.zip"),
        (("nnunet", "-m", "ARCHIVE"), "-m belongs to export onnx"),
        (("onnx", "-d", "598", "--model-config", "2d"), "--model-config belongs to -m"),
    ],
)
def test_wrong_models(archive, tmp_path, capsys, words, message):
    (tmp_path / "broken.zip").write_bytes(archive.read_bytes()[:-500])
    places = {"ARCHIVE": str(archive), "BROKEN": str(tmp_path / "broken.zip")}
    before = sorted(tmp_path.iterdir())
    assert main(["export", *(places.get(word, word) for word in words), "-o", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1] and ".unfinished" not in printed[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_is_kept(archive, tmp_path, capsys):
    os.link(archive, tmp_path / "same")
    assert main(["export", "onnx", "-m", str(archive), "-o", str(tmp_path / "same")]) == 1
    assert "same: it is the same as" in capsys.readouterr().err


def test_a_preprocessor_of_a_fork_is_named(students, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "moved" / results(students).name
    shutil.copytree(results(students), folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "MyPreprocessor"
    (folder / "plans.json").write_text(json.dumps(plans))
    assert main(["export", "onnx", "-m", str(folder), "-f", "0", "-o", str(tmp_path / "model")]) == 1
    assert "plans.json asks for the preprocessor 'MyPreprocessor', but prediction" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
