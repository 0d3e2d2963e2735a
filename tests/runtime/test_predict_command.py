"""``nnunet_kd predict``: options, interruption, bad images and missing engines."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_kd.cli import main
from nnunet_kd.runtime import engines, model, predictor
from nnunet_kd.runtime.engines import choose_engine


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_options_reach_the_predictor(students, onnx_models, tmp_path, monkeypatch):
    made = []

    class Recorded(model.Model):
        def __init__(self, *words):
            super().__init__(*words)
            starts = self.window.starts([2 * size for size in self.model.patch_size])
            made.append((words[1:], np.prod([len(one) for one in starts])))

    monkeypatch.setattr(model, "Model", Recorded)
    words = ("predict", "-m", str(onnx_models["3d_fullres"]), "-i", str(students.raw / "imagesTs"))
    options = ("--threads", "1", "--engine", "onnxruntime", "--disable_tta", "-step_size", "1")
    assert main([*words, "-o", str(tmp_path / "whole"), *options]) == 0
    assert main([*words, "-o", str(tmp_path / "half"), *options[:-2]]) == 0
    assert made == [(("onnxruntime", 1, 1.0, False, False), 8), (("onnxruntime", 1, 0.5, False, False), 27)]


@pytest.fixture
def images(students, tmp_path):
    """The images of three cases."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (students.raw / "imagesTs").glob("*.nii.gz"):
        for name in ("a", "b", "c"):
            shutil.copy(path, folder / f"{name}{path.name[-12:]}")
    return folder


def predict(model, images, out, *words):
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), "--disable_tta", *words])


def test_one_file_parts_and_resuming(onnx_models, images, tmp_path, capsys):
    model, out = onnx_models["3d_fullres"], tmp_path / "out"
    assert predict(model, images, out, "-num_parts", "2", "-part_id", "1") == 0
    assert [path.name for path in out.glob("*.nii.gz")] == ["b.nii.gz"]
    before = (out / "b.nii.gz").stat().st_mtime_ns
    assert predict(model, images, out, "--continue_prediction") == 0
    assert "2 cases in" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (out / "b.nii.gz").stat().st_mtime_ns == before
    assert predict(model, images, out, "--continue_prediction") == 0
    assert "nothing to predict" in capsys.readouterr().out
    assert predict(model, images, out, "--continue_prediction", "--save_probabilities") == 0
    assert sorted(path.name for path in out.glob("*.npz")) == ["a.npz", "b.npz", "c.npz"]
    assert predict(model, images / "a_0000.nii.gz", tmp_path / "one.nii.gz") == 0
    np.testing.assert_array_equal(read(tmp_path / "one.nii.gz"), read(out / "a.nii.gz"))
    assert predict(model, images / "a_0000.nii.gz", tmp_path / "folder") == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.nii.gz"]


@pytest.mark.slow
def test_parts_in_several_jobs(onnx_models, images, tmp_path, capsys):
    """Two jobs at once write what one command writes; a part that fails is named."""
    model, out = onnx_models["3d_fullres"], tmp_path / "out"
    assert predict(model, images, tmp_path / "whole") == 0
    assert predict(model, images, out, "--launcher", "local", "-num_parts", "2", "-part_id", "1") == 1
    assert "--launcher sends all parts: leave out -part_id" in capsys.readouterr().err
    assert predict(model, images, out, "--launcher", "local", "--jobs", "2") == 0
    assert "2 tasks: 2 running" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "jobs_of_out" / "logs").glob("*.log")) == [
        "part_0_of_2.log",
        "part_1_of_2.log",
    ]
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (images / "b_0001.nii.gz").write_bytes(b"no image")
    assert predict(model, images, tmp_path / "bad", "--launcher", "local", "--jobs", "2") == 1
    error = capsys.readouterr().err
    assert error.startswith("nnunet_kd: part 2 of 2 failed: nnunet_kd predict failed (case b: cannot read ")
    assert predict(model, images / "a_0000.nii.gz", out, "--launcher", "local", "--jobs", "2") == 1
    assert "--launcher sends parts of a folder of images" in capsys.readouterr().err


def test_bad_images_are_named_and_finished_cases_are_kept(onnx_models, images, tmp_path, capsys):
    model, out = onnx_models["3d_fullres"], tmp_path / "out"
    (images / "b_0001.nii.gz").write_bytes(b"no image")
    assert predict(model, images, out) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnunet_kd: case b: cannot read ") and "b_0001.nii.gz" in error
    assert [path.name for path in out.glob("*.nii.gz")] == ["a.nii.gz"] and not list(out.glob(".unfinished*"))
    (images / "b_0001.nii.gz").unlink()
    assert predict(model, images, out) == 1
    assert "case b: there is no" in capsys.readouterr().err
    shutil.copy(images / "a_0001.nii.gz", images / "b_0001.nii.gz")
    shutil.copy(images / "a_0001.nii.gz", images / "b_0007.nii.gz")
    assert predict(model, images, out) == 1
    assert "b_0007.nii.gz is channel 7, but the model reads 3 channels, 0000 to 0002" in capsys.readouterr().err


def test_an_interruption_leaves_only_complete_files(onnx_models, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    write = predictor.write_segmentation
    written = []

    def stopped(*arguments, **options):
        write(*arguments, **options)
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "write_segmentation", stopped)
    assert predict(onnx_models["3d_fullres"], images, out) == 130
    assert capsys.readouterr().err.endswith("nnunet_kd: stopped\n")
    assert [path.name for path in out.glob("*.nii.gz")] == ["a.nii.gz"] and not list(out.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "tensorrt"), "an engine is one of auto, openvino, onnxruntime, got 'tensorrt'"),
        (("-step_size", "0"), "the step size must be above 0 and at most 1, got 0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("-part_id", "1"), "-part_id must be from 0 to 0, got 1"),
        (("-i", "nowhere"), "there is no nowhere"),
        (("-i", "EMPTY"), "has no images named CASE_0000.nii.gz"),
        (("-i", "FILE"), "does not end with .nii.gz"),
        (("-m", "nowhere"), "there is no model in nowhere"),
    ],
)
def test_wrong_arguments(onnx_models, images, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").touch()
    places = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "image.png")}
    out = tmp_path / "out"
    assert predict(onnx_models["3d_fullres"], images, out, *(places.get(word, word) for word in words)) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_engines_that_are_not_installed(monkeypatch, capsys, onnx_models, images, tmp_path):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "openvino" else True)
    assert choose_engine("auto") == "onnxruntime"
    with pytest.raises(ImportError, match=r"openvino is not installed: pip install 'nnunet_kd\[openvino\]'"):
        choose_engine("openvino")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"no engine is installed: pip install 'nnunet_kd\[onnx\]'"):
        choose_engine("auto")
    assert predict(onnx_models["2d"], images, tmp_path / "out") == 1
    assert capsys.readouterr().err == "nnunet_kd: no engine is installed: pip install 'nnunet_kd[onnx]'\n"
