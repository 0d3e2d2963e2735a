"""The command that a training without soft labels names, which has to be the right one for the trainer and plans."""

import pytest

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from nnunet_kd.trainers.nnUNetTrainerSoftKD import nnUNetTrainerSoftKD
from nnunet_kd.training.preparation import prepare
from nnunet_kd.training.sources import attach_soft_labels
from tests.conftest import SHORT

COMMAND = "nnunet_kd soft-labels -d Dataset598_TinyHeads -c 3d_fullres -p nnUNetPlans"


def refusal(workspace, kind, fold=0, **block):
    plans = workspace.plans(training=SHORT, **block)
    preparation = prepare(kind, Experiment(plans, "3d_fullres", workspace.dataset_json), fold)
    with pytest.raises(FileNotFoundError) as error:
        attach_soft_labels(kind, preparation)
    return str(error.value)


def test_soft_kd_without_a_named_teacher_needs_a_model(workspace):
    said = refusal(workspace, nnUNetTrainerSoftKD, method={"soft_labels": "x"})
    assert said.startswith("there are no soft labels 'x' in ")
    how = "Make them with the model that is to teach, a zip file or a results folder"
    assert said.endswith(f". {how}: {COMMAND} --model MODEL --name x")


def test_sam_s_trainer_needs_sam(workspace):
    said = refusal(workspace, nnUNetTrainerSAMKD)
    assert said.endswith(f". Make them: {COMMAND} --sam vit_b --checkpoint FILE")


@pytest.mark.parametrize("kind", [nnUNetTrainerSoftKD, nnUNetTrainerSAMKD])
def test_a_teacher_that_the_plans_name_is_named_again(workspace, kind):
    assert refusal(workspace, kind, teacher={"plans": "nnUNetPlans"}).endswith(f". Make them: {COMMAND} --teacher")
    said = refusal(workspace, kind, fold=1, teacher={"folder": "/models/my teacher"})
    assert said.endswith(f". Make them: {COMMAND} --model '/models/my teacher' -f 1")
    teacher = {
        "folder": "/m",
        "folds": [0, 2],
        "configuration": "3d_lowres",
        "checkpoint": "checkpoint_best.pth",
        "channels": [2, 0],
        "label_map": {"a": ["b"]},
        "trust_checkpoint": True,
    }
    said = refusal(workspace, kind, teacher=teacher)
    words = (
        "--model /m -f 0 2 --model-config 3d_lowres -chk checkpoint_best.pth --channels 2 0 --label-map FILE --trust"
    )
    assert said.endswith(f". Make them, with nnunet_kd.teacher.label_map of the plans in FILE: {COMMAND} {words}")
