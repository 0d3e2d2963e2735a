"""A training never changes a frozen projection, also when it resumes or averages its weights."""

import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import NOW, checkpoint

PUBLISHED = {**NOW, "transform": "published", "projection": "frozen", "weight": 1}


def test_a_frozen_projection_outlives_stop_and_resume(workspace):
    training = {**SHORT, "ema_decay": 0.9}
    plans = workspace.plans("nnUNetPlans", training=training, method=PUBLISHED)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.initialize()
    start = {name: value.clone() for name, value in trainer.trained().adapters.state_dict().items()}
    weights = {name: value.clone() for name, value in trainer.trained().student.named_parameters()}
    assert any(name.endswith("bias") for name in start)
    stop_within(trainer, 3)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    trainer.run_training()
    saved = checkpoint(workspace)
    held = [
        parameter
        for parameter in trainer.trained().adapters.parameters()
        if trainer.optimizer.state.get(parameter) or parameter.grad is not None
    ]
    assert held == []
    assert saved["nnunet_kd"]["adapters"].keys() == start.keys()
    assert all(torch.equal(value, start[name]) for name, value in saved["nnunet_kd"]["adapters"].items())
    student = dict(trainer.trained().student.named_parameters())
    assert any(not torch.equal(student[name], value) for name, value in weights.items())
    assert "projection frozen" in saved["nnunet_kd"]["record"]["terms"][0]
