"""Trainings that resume, restart or are extended."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerFreeKD import nnUNetTrainerFreeKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.training.record import changes, record_of
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import NOW, checkpoint


@pytest.mark.parametrize(
    ("kind", "method", "extra"),
    [
        (nnUNetTrainerDCD, {"ramp": [1, 3]}, {}),
        (nnUNetTrainerDCD, {"ramp": [1, 3]}, {"ema_decay": 0.9}),
        (nnUNetTrainerFreeKD, {"prompt_epochs": 2}, {}),
    ],
    ids=["plain", "ema", "after tuning prompts"],
)
def test_resumed_training_equals_an_undisturbed_one(workspace, kind, method, extra):
    schedule = {**SHORT, "num_epochs": 4, **extra}
    plans = workspace.plans("nnUNetPlans", training=schedule, method=method)
    whole = make_trainer(kind, plans, workspace)
    whole.run_training()
    expected = whole.logger.get_checkpoint()
    expected_weights = checkpoint(workspace, kind.__name__)["network_weights"]
    folder = workspace.results / f"{kind.__name__}__nnUNetPlans__3d_fullres"
    shutil.rmtree(folder)

    stopped = make_trainer(kind, plans, workspace)
    stop_within(stopped, 5)  # two complete epochs and one step
    resumed = make_trainer(kind, plans, workspace, resume=True)
    resumed.load_checkpoint(str(folder / "fold_0" / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    logged = resumed.logger.get_checkpoint()
    for name in ("train_losses", "val_losses", "lrs", *whole.logged_terms()):
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-6, equal_nan=True)
    for name, weight in checkpoint(workspace, kind.__name__)["network_weights"].items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("begun", "now"), [({}, {"optimizer": "adamw"}), ({"optimizer": "adamw"}, {})])
def test_resuming_with_another_optimizer_is_refused(workspace, begun, now):
    plans = [workspace.plans("nnUNetPlans", training={**SHORT, "save_every": 1, **one}) for one in (begun, now)]
    stop_within(make_trainer(nnUNetTrainerNoKD, plans[0], workspace), 3)
    trainer = make_trainer(nnUNetTrainerNoKD, plans[1], workspace, resume=True)
    with pytest.raises(ValueError, match=f"begun with {begun.get('optimizer', 'SGD')}, but nnunet_kd.training"):
        maybe_load_checkpoint(trainer, True, False)


def test_resuming_with_other_adapters_is_refused(workspace):
    """A term of the same name has options that need other adapters."""
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    make_trainer(nnUNetTrainerDualSelfKD, plans, workspace).run_training()
    path = str(workspace.results / "nnUNetTrainerDualSelfKD__nnUNetPlans__3d_fullres" / "fold_0/checkpoint_final.pth")
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"beta": 0})
    changed = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace)
    with pytest.raises(ValueError, match="begun with other options of its terms, which need other adapters"):
        changed.load_checkpoint(path)


def test_two_stopped_trainings_keep_the_one_before_them(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 3, "overwrite": True})
    first = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    first.run_training()
    folder = Path(first.output_folder)
    old = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    aside = {f"earlier_{name}": content for name, content in old.items()}
    for number in (2, 3):  # each could have run for days
        stop_within(make_trainer(nnUNetTrainerNoKD, plans, workspace), 3)
        assert {path.name: path.read_bytes() for path in folder.glob("earlier_*.pth")} == aside
        assert not (folder / "checkpoint_final.pth").exists()
        for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
            aside[f"earlier_{number}_{name}"] = (folder / name).read_bytes()
    make_trainer(nnUNetTrainerNoKD, plans, workspace).run_training()
    assert sorted(path.name for path in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]


def test_a_killed_training_keeps_its_best_epoch(workspace):
    """nnU-Net saves the latest checkpoint of an epoch before it knows that the epoch is the best."""
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 4})
    stopped = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    save = stopped.save_checkpoint

    def killed(filename):
        if stopped.current_epoch == 1 and filename.endswith("best.pth"):
            raise RuntimeError("killed")
        save(filename)

    stopped.save_checkpoint = killed
    validated = stopped.on_validation_epoch_end

    def improving(outputs):
        validated(outputs)
        if stopped.current_epoch == 1:
            stopped.logger.local_logger.my_fantastic_logging["ema_fg_dice"][-1] = 0.9

    stopped.on_validation_epoch_end = improving
    with pytest.raises(RuntimeError, match="killed"):
        stopped.run_training()
    latest = checkpoint(workspace, "nnUNetTrainerNoKD", name="latest")
    assert latest["current_epoch"] == 2 and latest["_best_ema"] < 0.9

    resumed = make_trainer(nnUNetTrainerNoKD, plans, workspace, resume=True)
    maybe_load_checkpoint(resumed, True, False)
    resumed.run_training()
    best = checkpoint(workspace, "nnUNetTrainerNoKD", name="best")
    assert best["_best_ema"] == resumed._best_ema == 0.9 and best["current_epoch"] == 2
    torch.testing.assert_close(best["network_weights"], latest["network_weights"], rtol=0, atol=0)
    assert checkpoint(workspace, "nnUNetTrainerNoKD")["current_epoch"] == 4


def test_resuming_with_other_terms_is_refused(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    path = str(workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth")
    for method in ({**NOW, "add": [{"name": "cwd"}]}, {**NOW, "stages": [0]}):
        plans = workspace.plans("nnUNetPlans", training=SHORT, method=method)
        changed = make_trainer(nnUNetTrainerDCD, plans, workspace)
        with pytest.raises(ValueError, match=r"begun with other terms or stages \(dcd\) than nnunet_kd.method"):
            changed.load_checkpoint(path)
    heavier = workspace.plans("nnUNetPlans", training=SHORT, method={**NOW, "weight": 1})
    make_trainer(nnUNetTrainerDCD, heavier, workspace).load_checkpoint(path)  # weights of terms can change


def test_a_restarted_training_resumes_from_its_own_checkpoints(workspace):
    """It must not resume from the end of the earlier training with the settings of the new one."""
    schedule = {**SHORT, "num_epochs": 3, "save_every": 1}
    first = workspace.plans("nnUNetPlans", training=schedule, method={**NOW, "weight": 0.01}, teacher={"folds": [1]})
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    make_trainer(nnUNetTrainerDCD, first, workspace).run_training()
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    assert recorded_leakage(json.loads((folder.parent / "plans.json").read_text()))
    old = (folder / "checkpoint_final.pth").read_bytes()

    again = {**schedule, "overwrite": True}
    second = workspace.plans("nnUNetPlans", training=again, method={**NOW, "weight": 5})
    stopped = make_trainer(nnUNetTrainerDCD, second, workspace)
    stop_within(stopped, 3)
    assert sorted(path.name for path in folder.glob("*.pth")) == [
        "checkpoint_best.pth",
        "checkpoint_latest.pth",
        "earlier_checkpoint_best.pth",
        "earlier_checkpoint_final.pth",
    ]
    assert (folder / "earlier_checkpoint_final.pth").read_bytes() == old
    resumed = make_trainer(nnUNetTrainerDCD, second, workspace, resume=True)
    maybe_load_checkpoint(resumed, True, False)  # as nnUNetv2_train --c does
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert sorted(path.name for path in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    own = checkpoint(workspace)["nnunet_kd"]
    assert own["record"]["terms"][0].startswith("dcd: weight 5") and own["earlier_records"] == []
    assert not recorded_leakage(json.loads((folder.parent / "plans.json").read_text()))


def test_an_extended_training_resumes_from_its_own_saves(workspace):
    """It must not resume from its earlier end each time it is stopped."""
    schedule = {**SHORT, "num_epochs": 2, "save_every": 1}
    make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=schedule), workspace).run_training()
    longer = workspace.plans("nnUNetPlans", training={**schedule, "num_epochs": 6})
    for epochs in (2, 4):
        trainer = make_trainer(nnUNetTrainerNoKD, longer, workspace, resume=True)
        maybe_load_checkpoint(trainer, True, False)
        assert trainer.current_epoch == epochs
        if epochs == 2:
            stop_within(trainer, 5)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert sorted(path.name for path in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert len(trainer.logger.get_checkpoint()["train_losses"]) == 6


def test_a_finished_training_is_not_overwritten_by_default(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    make_trainer(nnUNetTrainerNoKD, plans, workspace).run_training()
    folder = workspace.results / "nnUNetTrainerNoKD__nnUNetPlans__3d_fullres"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = folder / "fold_0" / "checkpoint_final.pth"
    for pretrained in (None, str(weights)):  # in nnU-Net's order
        again = make_trainer(nnUNetTrainerNoKD, plans, workspace)
        maybe_load_checkpoint(again, False, False, pretrained)
        with pytest.raises(FileExistsError, match="holds a finished training, .*--val .*--c .*overwrite") as refused:
            again.run_training()
        assert "\n" not in str(refused.value)
    logs = {*folder.glob("fold_0/training_log_*.txt")}  # every nnU-Net trainer opens a log
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in logs} == {
        path: content for path, content in before.items() if path not in logs
    }
    asked = workspace.plans("nnUNetPlans", training={**SHORT, "overwrite": True})
    trainer = make_trainer(nnUNetTrainerNoKD, asked, workspace)
    trainer.run_training()
    record = torch.load(weights, weights_only=False)["nnunet_kd"]["record"]
    assert changes(record_of(trainer.preparation), record) == ""
    assert weights.read_bytes() != before[weights] and not list(folder.glob("fold_0/earlier*"))


@pytest.mark.slow
def test_a_finished_training_validates_without_its_teacher(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerDCD, plans, workspace)
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.perform_actual_validation()
    assert (folder / "validation" / "summary.json").is_file()
