"""Several teachers teach together, or are refused if they have nothing in common."""

import json
import shutil

import pytest
import torch

from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from tests.conftest import SHORT, make_trainer
from tests.teachers.refused import refused


def second_fold(workspace):
    """Create a second teacher as fold 1, with modified weights of fold 0."""
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    path = workspace.teacher / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for weight in content["network_weights"].values():
        weight.mul_(1.1)
    torch.save(content, path)


@pytest.mark.parametrize("teacher", [{"folds": [0, 1]}, [{}, {"folds": [1]}]], ids=["folds", "list"])
def test_several_teachers_teach_together(workspace, teacher):
    second_fold(workspace)
    terms = [{"name": "dcd", "ramp": None}, {"name": "logits"}]
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher=teacher, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    trainer.run_training()
    ensemble = trainer.distiller.teacher
    images = torch.randn(1, 3, *trainer.configuration_manager.patch_size)
    logits, features = ensemble(images)
    each = [member(images) for member in ensemble.teachers]
    assert len(each) == 2 and not torch.equal(each[0][0][0], each[1][0][0])
    expected = (torch.softmax(each[0][0][0], 1) + torch.softmax(each[1][0][0], 1)) / 2
    torch.testing.assert_close(torch.softmax(logits[0], 1), expected)
    torch.testing.assert_close(features[1], (each[0][1][1] + each[1][1][1]) / 2)

    folder = workspace.results / "nnUNetTrainerKD__nnUNetPlans__3d_fullres"
    warning = "LEAKAGE: the teacher (fold 1) was trained on validation cases of student fold 0"
    assert warning in next((folder / "fold_0").glob("training_log*")).read_text()
    assert recorded_leakage(json.loads((folder / "plans.json").read_text()))["0"].startswith(warning)


def test_several_teachers_have_no_common_prompts(workspace):
    second_fold(workspace)
    plans = workspace.plans("nnUNetPlans", teacher={"folds": [0, 1]}, method={"terms": [{"name": "freekd"}]})
    message = "freekd tunes prompts on one teacher, but the plans name 2: keep one in nnunet_kd.teacher, or use another"
    refused(workspace, NotImplementedError, message, plans, kind=nnUNetTrainerKD)


def test_features_of_teachers_of_different_width_are_refused(workspace):
    student = make_trainer(
        nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None}), workspace
    )
    student.run_training()  # a student can serve as a teacher
    teachers = [{}, {"trainer": "nnUNetTrainerDCD"}]
    plans = workspace.plans("nnUNetPlans_two", teacher=[{"plans": "nnUNetPlans", **one} for one in teachers])
    message = r"same stages: teacher 0 has widths \[32, 64, 128\] .*, teacher 1 widths \[8, 16, 32\]"
    refused(workspace, ValueError, message, plans)
    plans["nnunet_kd"]["method"] = {"terms": [{"name": "logits"}]}
    plans["nnunet_kd"]["training"] = SHORT
    make_trainer(nnUNetTrainerKD, plans, workspace).run_training()
