"""A missing teacher is refused with advice, before the student's results folder is created."""

import shutil

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import SHORT, make_trainer
from tests.teachers.refused import edit, refused


def test_missing_folder(workspace):
    shutil.rmtree(workspace.teacher)
    command = "nnUNetv2_train Dataset598_TinyHeads 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans"
    refused(workspace, FileNotFoundError, f"there is no teacher in .*nnUNetTrainer__nnUNetPlans.* Train it: {command}")


def test_the_teacher_of_plans_that_were_copied_by_hand(workspace):
    """The teacher has the name of the original plans, and the advice in the message is sufficient to use it."""
    message = 'There is one with the plans nnUNetPlans: set "teacher": {"plans": "nnUNetPlans"} in the nnunet_kd block '
    plans = workspace.plans("mine", training=SHORT)
    refused(
        workspace, FileNotFoundError, f"{message}of mine to use it, or train the missing teacher: nnUNetv2_train", plans
    )
    make_trainer(nnUNetTrainerDCD, workspace.plans("mine", teacher={"plans": "nnUNetPlans"}), workspace)


def test_a_named_folder_gets_no_advice_to_train(workspace, tmp_path):
    for folder, message in (
        (tmp_path / "none", "there is no teacher in .*none. Set nnunet_kd.teacher.folder to another folder$"),
        (workspace.teacher, "has fold_0, but not fold_1. Set nnunet_kd.teacher.folder to another folder$"),
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


def test_a_configuration_that_the_teachers_plans_lack(workspace):
    edit(workspace.teacher / "plans.json", configurations={"2d": {}})
    refused(workspace, ValueError, "the teacher's .*plans.json has no configuration 3d_fullres, only 2d$")


def test_unreadable_plans(workspace):
    (workspace.teacher / "plans.json").write_text("{")
    refused(workspace, ValueError, "cannot read the teacher's .*plans.json")
