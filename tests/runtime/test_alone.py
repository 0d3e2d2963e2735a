"""The runtime needs neither PyTorch nor nnU-Net nor another room of this package, also as a wheel of its own."""

import ast
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_kd.runtime
from tests.runtime.made_model import make_model

ROOT = Path(nnunet_kd.__file__).parents[1]
RUNTIME = Path(nnunet_kd.runtime.__file__).parent
HEAVY = ("torch", "nnunetv2", "batchgenerators", "acvl_utils", "skimage", "pandas", "tqdm", "matplotlib", "onnx")
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
"""


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def run_blocked(code, *words):
    done = subprocess.run([sys.executable, "-c", BLOCKED + code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_prediction_imports_nothing_heavy(students, onnx_models, tmp_path):
    """Also with --save_probabilities, and without any other room of this package but the parser's."""
    words = ("predict", "-m", onnx_models["3d_fullres"], "-i", students.raw / "imagesTs", "-o", tmp_path / "out")
    code = f"""
from nnunet_kd.cli import main
assert main(sys.argv[1:]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_blocked(code, *words, "--save_probabilities").splitlines()[-1] == "[]"
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_every_module_imports_by_itself():
    names = sorted(
        ".".join(("nnunet_kd.runtime", *path.relative_to(RUNTIME).with_suffix("").parts))
        for path in RUNTIME.rglob("*.py")
        if path.name != "__init__.py"
    )
    code = f"""
import importlib
for name in {names!r}:
    importlib.import_module(name)
print({{name.split(".")[1] for name in sys.modules if name.startswith("nnunet_kd.")}})
"""
    assert len(names) > 15 and run_blocked(code).strip() == "{'runtime'}"


def test_imports_within_the_runtime_are_relative():
    """In the wheel, the package has another name."""
    for path in RUNTIME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("nnunet_kd") for alias in node.names), path
            if isinstance(node, ast.ImportFrom):
                assert node.level or not str(node.module).startswith("nnunet_kd"), path
                assert node.level <= len(path.relative_to(RUNTIME).parts), path


def test_a_small_case_starts_without_scipy_and_openvinos_converter(tmp_path):
    """Their imports take longer than its prediction, and the converter reports its import over the network."""
    model = make_model(tmp_path / "model", (100,), (1, 1, 1))
    (tmp_path / "images").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((9, 9, 9), np.int16)), str(tmp_path / "images" / "a_0000.nii.gz"))
    code = """
import sys
from nnunet_kd.runtime.command import main
assert main(sys.argv[1:]) == 0
unwanted = ("scipy", "openvino.tools.ovc", "openvino_telemetry", "pydicom", "highdicom")
print("openvino" in sys.modules, [name for name in unwanted if name in sys.modules])
"""
    words = ("-m", model, "-i", tmp_path / "images", "-o", tmp_path / "out", "--engine", "openvino")
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["True []"], done.stderr


def test_files_can_be_written_without_numpy():
    """Other rooms use the runtime's files for quick refusals."""
    code = "import sys, nnunet_kd.storage.writing, nnunet_kd.runtime; print('numpy' in sys.modules)"
    assert run_blocked(code).strip() == "False"


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(students, onnx_models, tmp_path):
    """It predicts what nnunet_kd predicts, and the whole environment takes at most 800 MB."""
    build = [sys.executable, "-m", "build", "--wheel", str(ROOT / "runtime"), "--outdir", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the wheel's build tools cannot be downloaded: {done.stdout[-200:]}{done.stderr[-200:]}")
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    install = [str(programs / "pip"), "install", "--no-compile", f"{wheel}[openvino]"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the wheel's dependencies cannot be downloaded: {done.stderr[-200:]}")
    names = json.loads(
        subprocess.run([str(programs / "pip"), "list", "--format", "json"], capture_output=True, text=True).stdout
    )
    assert not {one["name"].lower() for one in names} & {"torch", "nnunetv2", "scikit-image"}
    images = students.raw / "imagesTs"
    words = ["-m", str(onnx_models["3d_fullres"]), "-i", str(images), "--disable_tta", "-o"]
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "nnUNet_extTrainer")}
    command = [str(programs / "nnunet_kd_predict"), *words, str(tmp_path / "out")]
    done = subprocess.run(command, env=alone, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from nnunet_kd.cli import main

    assert main(["predict", *words, str(tmp_path / "expected")]) == 0
    (case,) = (path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    np.testing.assert_array_equal(read(tmp_path / "out" / case), read(tmp_path / "expected" / case))
    size = sum(
        path.stat().st_size for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink()
    )
    print(f"installed size: {size / 1e6:.0f} MB")
    assert size <= 800e6
    done = subprocess.run([*command[:2], "nothing", *command[3:]], env=alone, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("nnunet_kd_predict: there is no model in nothing")
