"""Learning rate schedules other than nnU-Net's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.nnunet.settings import TrainingSettings, read_settings
from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.training.schedules import PlateauSchedule, make_optimizer
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import checkpoint


@pytest.mark.parametrize("first", [3.0, -0.9])
def test_any_lower_loss_ends_a_plateau(first):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = PlateauSchedule(optimizer, patience=2)
    for epoch in range(3):
        schedule.observe(first + 5e-5 * epoch)
    assert optimizer.param_groups[0]["lr"] == 1.0
    schedule.observe(first + 2e-4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    schedule.observe(first - 1e-6)  # lower, if only slightly
    schedule.observe(first)
    schedule.observe(first)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_cosine_waves_are_pytorchs():
    ours, theirs = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(2))
    settings = TrainingSettings(lr_schedule="cosine", cosine_epochs=5)
    network = torch.nn.Linear(1, 1)
    _, schedule = make_optimizer(settings, network, 0.1, 30, lambda: (ours, None))
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 5, 1e-5)
    for epoch in range(17):
        schedule.step(epoch)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()
    assert min(schedule.rate(0.1, epoch) for epoch in range(17)) == pytest.approx(1e-5)


class Scripted(nnUNetTrainerNoKD):
    """A trainer whose validation losses are those of a script."""

    losses = (1.0, 1.0, 1.0, 0.5, 0.5)

    def validation_step(self, batch):
        return {**super().validation_step(batch), "loss": np.float32(self.losses[self.current_epoch])}


@pytest.mark.parametrize("optimizer", [None, pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_plateau_lowers_the_rate_and_survives_a_stop_exactly(workspace, optimizer):
    schedule = {"lr_schedule": "plateau", "plateau_patience": 1, "initial_lr": 0.01, "optimizer": optimizer}
    plans = workspace.plans(
        "nnUNetPlans", training={**SHORT, "num_epochs": 5, "num_iterations_per_epoch": 1, **schedule}
    )
    whole = make_trainer(Scripted, plans, workspace)
    whole.run_training()
    rates = whole.logger.get_checkpoint()["lrs"]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 1e-3, 1e-3])
    expected = checkpoint(workspace, "Scripted")
    shutil.rmtree(whole.output_folder)

    stop_within(make_trainer(Scripted, plans, workspace), 2)  # after the first of the epochs without a lower loss
    resumed = make_trainer(Scripted, plans, workspace, resume=True)
    maybe_load_checkpoint(resumed, True, False)
    assert resumed.current_epoch == 2
    resumed.run_training()
    assert resumed.logger.get_checkpoint()["lrs"] == rates
    after = checkpoint(workspace, "Scripted")
    assert all(
        torch.equal(value, after["network_weights"][name]) for name, value in expected["network_weights"].items()
    )
    assert after["nnunet_kd"]["plateau"] == expected["nnunet_kd"]["plateau"]


def test_a_training_can_resume_with_a_plateau_schedule_that_it_began_without(workspace):
    begun = {**SHORT, "num_epochs": 3}
    stop_within(make_trainer(Scripted, workspace.plans("nnUNetPlans", training=begun), workspace), 5)
    plans = workspace.plans("nnUNetPlans", training={**begun, "lr_schedule": "plateau"})
    trainer = make_trainer(Scripted, plans, workspace, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    trainer.run_training()
    assert trainer.logger.get_checkpoint()["lrs"][2] == trainer.logger.get_checkpoint()["lrs"][1] < 0.01
    logs = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*"))
    assert "training resumes with other settings than it began with: lr_schedule None, now plateau" in logs


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr_schedule": "step"}, r"training.lr_schedule must be null or one of \('plateau', 'cosine'\), got 'step'"),
        ({"cosine_epochs": 0}, "training.cosine_epochs must be at least 1"),
        ({"plateau_patience": -1}, "training.plateau_patience must be at least 0"),
        ({"augmentation": "none"}, "training.augmentation must be null or one of .'flips_and_brightness', "),
        (
            {"one_pass_per_epoch": True, "num_iterations_per_epoch": 5},
            "both one_pass_per_epoch and num_iterations_per_epoch",
        ),
    ],
)
def test_wrong_settings_are_refused(training, message):
    with pytest.raises(ValueError, match=message):
        read_settings({"nnunet_kd": {"training": training}})


def test_trainers_with_a_schedule_of_their_own_refuse_the_plateau(workspace):
    plans = workspace.plans("nnUNetPlans", training={"lr_schedule": "plateau"})
    with pytest.raises(ValueError, match="lr_schedule: nnUNetTrainerBrainSegDMIF has its own, remove the key"):
        make_trainer(nnUNetTrainerBrainSegDMIF, plans, workspace, configuration="2d")
