"""A training ends when nnU-Net's EMA pseudo Dice no longer rises, and can be validated with its best weights."""

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.training.early_stopping import best_epoch, stops_after
from tests.conftest import make_trainer, stop_within
from tests.training.checkpoints import checkpoint

SCRIPT = [0.1, 0.3, 0.2, 0.3, 0.9, 0.8, 0.7]  # with a patience of 2 the training ends before it sees 0.9
TRAINING = {
    "num_epochs": 7,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "early_stopping": 2,
}


@pytest.mark.parametrize(
    ("dice", "best", "stops"),
    [
        ([0.5], 0, False),
        ([0.1, 0.3, 0.2], 1, False),
        ([0.1, 0.3, 0.2, 0.3], 1, True),  # an equal value is no improvement
        ([0.1, 0.2, 0.3, 0.4], 3, False),
        ([0.4, 0.3, 0.2, 0.5], 3, False),
        ([float("nan"), 0.3, 0.2], 0, True),  # nnU-Net keeps the first epoch then
    ],
)
def test_patience_counts_from_the_epoch_that_nnunet_keeps_as_best(dice, best, stops):
    assert best_epoch(dice) == best
    assert stops_after(dice, 2) is stops
    assert not stops_after(dice, None) and not stops_after([], 2)


def scripted(workspace, resume=False, **changes):
    """A trainer whose EMA pseudo Dice is that of the script."""
    plans = workspace.plans("nnUNetPlans", training={**TRAINING, **changes})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace, resume=resume)
    validate = trainer.on_validation_epoch_end

    def with_script(outputs):
        validate(outputs)
        trainer.logger.local_logger.my_fantastic_logging["ema_fg_dice"][-1] = SCRIPT[trainer.current_epoch]

    trainer.on_validation_epoch_end = with_script
    if resume:
        maybe_load_checkpoint(trainer, True, False)
    return trainer


def saved(workspace, name="final"):
    return checkpoint(workspace, "nnUNetTrainerNoKD", name=name)


def test_a_stopped_training_ends_in_the_same_epoch_and_only_more_patience_continues_it(workspace):
    trainer = scripted(workspace)
    stop_within(trainer, 3)
    scripted(workspace, resume=True).run_training()
    assert saved(workspace)["current_epoch"] == 4 and saved(workspace, "best")["current_epoch"] == 2
    log = next((workspace.results / "nnUNetTrainerNoKD__nnUNetPlans__3d_fullres" / "fold_0").glob("training_log*"))
    logs = "".join(path.read_text() for path in log.parent.glob("training_log*"))
    assert "early stopping: EMA pseudo Dice has not risen since epoch 1, 2 epochs ago" in logs

    ended = scripted(workspace, resume=True)
    ended.train_step = None  # no step is taken
    ended.run_training()
    assert saved(workspace)["current_epoch"] == 4
    weights = saved(workspace)["network_weights"]

    patient = scripted(workspace, resume=True, early_stopping=5)
    patient.run_training()
    assert saved(workspace)["current_epoch"] == 7 and saved(workspace, "best")["current_epoch"] == 5
    assert any(not torch.equal(weights[name], value) for name, value in saved(workspace)["network_weights"].items())


def test_the_final_validation_can_use_the_best_weights(workspace, monkeypatch):
    validated = []

    def validation(trainer, save_probabilities=False):
        state = trainer.network.state_dict()
        validated.append({name: value.clone() for name, value in state.items()})

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validation)
    trainer = scripted(workspace, final_validation="best", ema_decay=0.5)
    trainer.run_training()
    trainer.perform_actual_validation()
    best, last = saved(workspace, "best")["network_weights"], saved(workspace)["network_weights"]
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert all(torch.equal(validated[0][name], value) for name, value in best.items())
    assert all(torch.equal(value, last[name]) for name, value in trainer.network.state_dict().items())

    usual = scripted(workspace, resume=True, ema_decay=0.5)
    usual.perform_actual_validation()
    assert all(torch.equal(validated[1][name], value) for name, value in last.items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("early_stopping", 0, "training.early_stopping must be at least 1, got 0"),
        ("final_validation", "last", 'training.final_validation must be "best" or null'),
    ],
)
def test_wrong_settings_are_refused(workspace, key, value, message):
    with pytest.raises(ValueError, match=message):
        scripted(workspace, **{key: value})
