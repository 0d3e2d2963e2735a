"""A distillation that is killed in any of its steps goes on, and ends with the student of an undisturbed one."""

import random
import shutil

import pytest
import torch

from tests.killing import needs_fork
from tests.workflow.killed_distillation import KilledDistillation, weights_in

STEPS = (
    "nnUNetv2_preprocess",
    "nnunet_kd soft-labels",
    "nnUNetv2_train",
    "nnUNetv2_predict",
    "nnunet_kd export",
)
SHORT = ["--epochs", "3", "--iterations", "2", "--disable_tta", "-np", "1", "-device", "cpu"]


@needs_fork
@pytest.mark.slow
def test_killed_once_in_every_step(workspace, tmp_path):
    """Each kill comes at a random moment of a step, by the time that the step has taken without a kill."""
    images = workspace.root / "images"
    images.mkdir()
    for path in sorted((workspace.raw / "imagesTr").iterdir())[: 3 * 3]:  # three cases of three channels
        shutil.copy(path, images)
    words = ["-m", str(workspace.teacher), "-i", str(images), *SHORT]
    distillation = KilledDistillation(words, tmp_path, workspace.environment())
    seconds, _, _ = distillation.run(tmp_path / "whole")
    assert len(seconds) == len(STEPS)
    generator = random.Random(0)
    killed = tmp_path / "killed"
    for step, long in zip(STEPS, seconds.values(), strict=True):
        distillation.kill(killed, step, generator.random() * long)
        assert not (killed / "report.html").exists()
    _, ended, printed = distillation.run(killed)
    assert ended and printed.count("done before") >= 3, printed
    expected, found = (weights_in(folder / "student.zip") for folder in (tmp_path / "whole", killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())
    assert (killed / "report.html").is_file()
