"""A distillation on a disk without space ends in one sentence in every step, and goes on once there is space."""

import shutil

import pytest

from nnunet_kd.cli import main
from nnunet_kd.workflow.distillation import Distillation
from tests.full_disk import PAGE, leave

SHORT = ["--epochs", "1", "--iterations", "2", "--disable_tta", "-np", "1", "-device", "cpu"]
FAILURES = (
    "cannot write OUT/logs/preprocess.log: the disk is full",
    "nnunet_kd soft-labels failed (cannot write OUT/nnUNet_preprocessed",
    "nnUNetv2_train failed (the disk is full); its output is in OUT/logs/train.log",
    "nnUNetv2_predict_from_modelfolder failed (the disk is full); its output is in OUT/logs/predict_teacher.log",
    "nnunet_kd export failed (cannot write OUT/student.zip: the disk is full)",
)


@pytest.mark.slow
def test_no_space_in_any_step(workspace, tmp_path, small_disk, capsys, monkeypatch, forked_commands):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((workspace.raw / "imagesTr").iterdir())[: 3 * 3]:  # three cases of three channels
        shutil.copy(path, images)
    disk = small_disk(2**25)
    out = disk / "out"
    words = ["distill", "-m", str(workspace.teacher), "-i", str(images), "-o", str(out), *SHORT]
    steps = Distillation.steps

    def full_from(number):
        def run(self):
            for step, command in enumerate(steps(self)):
                if step == number:
                    leave(disk, 2 * PAGE)
                yield command

        return run

    for number, failure in enumerate(FAILURES):
        monkeypatch.setattr(Distillation, "steps", full_from(number))
        assert main(words) == 1
        printed = capsys.readouterr().err
        assert printed.splitlines()[-1].startswith("nnunet_kd: " + failure.replace("OUT", str(out))), printed
        assert not (out / "student.zip").exists()
        (disk / "filler").unlink()
    monkeypatch.setattr(Distillation, "steps", steps)
    assert main(words) == 0
    assert capsys.readouterr().out.count("done before") == len(FAILURES) - 1
    assert (out / "student.zip").is_file() and (out / "report.html").is_file()
