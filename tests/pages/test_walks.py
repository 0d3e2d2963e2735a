"""The commands of two pages, one after the other as a reader gives them, work on a tiny data set."""

import os
import shlex
import shutil

import pytest

from tests.commands import WORKING_FOLDER
from tests.conftest import SHORT
from tests.pages.blocks import ROOT, blocks, commands

pytest.importorskip("openvino")

PREPARED = (  # by the fixture, with nnU-Net's functions
    "nnUNetv2_plan_and_preprocess -d 501 -c 3d_fullres",
    "nnUNetv2_train 501 3d_fullres 0",
)
TESTED_ELSEWHERE = (  # in an empty environment, with a series of images, and with a network that has something to lose
    "python -m build --wheel runtime",
    "nnunet_kd_predict -m student_onnx -i IN -o OUT",
    "nnunet_kd predict -m student_onnx -i SERIES_FOLDER -o segmentation.dcm",
    "nnunet_kd export onnx -d 501 -tr nnUNetTrainerKD -o student_int8 --precision int8"
    " --images imagesTs --labels labelsTs",
)
ON_THE_CPU = {
    "nnUNetv2_train": "-device cpu",
    "nnUNetv2_predict": "-device cpu -npp 1 -nps 1",
    "nnunet_kd compare": "-device cpu",
}


def walk(page, workspace, folder, leave_out):
    """Run the commands of a page in a folder, except installations; returns what each has printed."""
    lines = [line for line in commands(ROOT / "docs" / page) if not line.startswith(("pip ", "export "))]
    assert not set(leave_out) - set(lines), "the page has changed"
    printed = {}
    for line in lines:
        if line in leave_out:
            continue
        here = line.replace("Dataset501_Mine", workspace.dataset).replace("501", "598")
        for name, options in ON_THE_CPU.items():
            here += f" {options}" if here.startswith(name) else ""
        words = [os.path.expandvars(word) for word in shlex.split(here, comments=True)]
        printed[line] = workspace.command(*words, **{WORKING_FOLDER: str(folder)})
    return printed


@pytest.mark.slow
def test_from_the_data_to_a_student_without_pytorch(workspace, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    workspace.plans("nnUNetPlans", training=SHORT)
    printed = walk("getting-started.md", workspace, folder, PREPARED)
    assert "FAIL" not in printed["nnunet_kd doctor -d 501"]
    assert (folder / "segmentations" / "head_006.nii.gz").is_file()
    assert (folder / "study" / "report.html").is_file()

    (folder / "IN").symlink_to(workspace.raw / "imagesTs")
    shutil.copy(folder / "student.zip", folder / "model.zip")
    walk("howto/deploy.md", workspace, folder, TESTED_ELSEWHERE)
    assert (folder / "OUT" / "head_006.nii.gz").is_file()
    assert (folder / "model_onnx" / "plans.json").is_file()
    ((_, snippet),) = blocks("python", ROOT / "docs" / "howto" / "deploy.md")
    monkeypatch.chdir(folder)
    names = {}
    exec(snippet.replace("rand(1,", "rand(3,"), names)  # heads have three channels
    assert names["labels"].shape == (30, 40, 40)
