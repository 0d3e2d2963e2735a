"""A teacher that is not there is refused with what to do about it, before the student's results folder exists."""

import shutil

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import SHORT, make_trainer
from tests.teachers.refused import edit, refused


def test_missing_folder(workspace):
    shutil.rmtree(workspace.teacher)
    command = "nnUNetv2_train Dataset598_TinyHeads 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans"
    refused(workspace, FileNotFoundError, f"there is no teacher in .*nnUNetTrainer__nnUNetPlans.* Train it: {command}")


def test_the_teacher_of_plans_that_were_copied_by_hand(workspace):
    """It has the name of the plans they were copied from; the message's line is all that is missing."""
    message = 'There is one with the plans nnUNetPlans: set "teacher": {"plans": "nnUNetPlans"} in the nnunet_kd block '
    plans = workspace.plans("mine", training=SHORT)
    refused(
        workspace, FileNotFoundError, f"{message}of mine to learn from it, or train this one: nnUNetv2_train", plans
    )
    make_trainer(nnUNetTrainerDCD, workspace.plans("mine", teacher={"plans": "nnUNetPlans"}), workspace)


def test_nothing_is_trained_for_a_folder_that_is_named(workspace, tmp_path):
    for folder, message in (
        (tmp_path / "none", "there is no teacher in .*none. Name another one: nnunet_kd.teacher.folder$"),
        (workspace.teacher, "has fold_0, but not fold_1. Name another one: nnunet_kd.teacher.folder$"),
    ):
        plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folder": str(folder)})
        refused(workspace, FileNotFoundError, message, plans, fold=1)


def test_missing_fold(workspace):
    refused(workspace, FileNotFoundError, "has fold_0, but not fold_1. Train it: .* 3d_fullres 1 ", fold=1)


def test_missing_checkpoint(workspace):
    (workspace.teacher / "fold_0" / "checkpoint_final.pth").rename(workspace.teacher / "fold_0" / "checkpoint_best.pth")
    refused(workspace, FileNotFoundError, "has checkpoint_best.pth in .* not checkpoint_final.pth. Finish its training")


def test_other_configuration(workspace):
    refused(
        workspace,
        FileNotFoundError,
        "there is no teacher in .*__3d_lowres",
        configuration="3d_fullres",
        plans=workspace.plans("nnUNetPlans", teacher={"configuration": "3d_lowres"}),
    )


def test_a_configuration_the_teachers_plans_do_not_have(workspace):
    edit(workspace.teacher / "plans.json", configurations={"2d": {}})
    refused(workspace, ValueError, "the teacher's .*plans.json has no configuration 3d_fullres, only 2d$")


def test_unreadable_plans(workspace):
    (workspace.teacher / "plans.json").write_text("{")
    refused(workspace, ValueError, "cannot read the teacher's .*plans.json")
