"""Training through nnU-Net's own life cycle on a tiny data set."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.settings import SCHEDULE, TrainingSettings, recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerFreeKD import nnUNetTrainerFreeKD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from nnunet_kd.training.preparation import prepare
from nnunet_kd.training.record import changes, record_of
from tests.conftest import SHORT, make_trainer, stop_within

NOW = {"ramp": None}


def checkpoint(workspace, trainer="nnUNetTrainerDCD", plans="nnUNetPlans", configuration="3d_fullres", name="final"):
    folder = workspace.results / f"{trainer}__{plans}__{configuration}"
    return torch.load(folder / "fold_0" / f"checkpoint_{name}.pth", weights_only=False)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_results_are_a_plain_student(workspace, configuration):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace, configuration=configuration)
    trainer.run_training()

    folder = workspace.results / f"nnUNetTrainerDCD__nnUNetPlans__{configuration}"
    saved = json.loads((folder / "plans.json").read_text())
    full = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    for name, content in saved["configurations"].items():
        before = full["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"]
        after = content["architecture"]["arch_kwargs"]["features_per_stage"]
        assert after == [max(width // 4, 8) for width in before]
    content = checkpoint(workspace, configuration=configuration)
    student = trainer.trained().student
    assert content["network_weights"].keys() == student.state_dict().keys()
    adapters = content["nnunet_kd"]["adapters"]
    assert len(adapters) == len(trainer.distiller.teacher_stages.widths)
    deeper = student.encoder.stages[1][0].convs[0].conv.weight
    assert deeper.is_contiguous() == (configuration == "2d")  # 3D students train channels last on a CPU
    assert all(weight.is_contiguous() for weight in content["network_weights"].values())
    in_optimizer = sum(len(group["params"]) for group in content["optimizer_state"]["param_groups"])
    assert in_optimizer == len(list(student.parameters())) + len(adapters)
    for name in ("segmentation", "dcd", "train_losses"):
        assert len(content["logging"][name]) == 2 and np.isfinite(content["logging"][name]).all()


def test_the_logged_loss_is_the_weighted_sum(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={**NOW, "weight": 0.5, "levels": 1})
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    logged = checkpoint(workspace)["logging"]
    expected = np.array(logged["segmentation"]) + 0.5 * np.array(logged["dcd"])
    np.testing.assert_allclose(logged["train_losses"], expected, rtol=1e-5)


def test_before_the_ramp_the_student_trains_as_without_a_teacher(workspace):
    training = {**SHORT, "num_epochs": 3}
    plans = workspace.plans("nnUNetPlans", training=training, method={"ramp": [1, 1], "weight": 1.0})
    distilled = make_trainer(nnUNetTrainerDCD, plans, workspace)
    distilled.run_training()
    alone = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=training), workspace)
    alone.run_training()
    ours, theirs = distilled.logger.get_checkpoint(), alone.logger.get_checkpoint()
    assert math.isnan(ours["dcd"][0]) and math.isnan(ours["dcd"][1]) and ours["dcd"][2] > 0
    assert ours["segmentation"][0] == theirs["segmentation"][0]  # same weights, same batches
    assert ours["train_losses"][:2] == theirs["train_losses"][:2]
    assert ours["train_losses"][2] > ours["segmentation"][2]


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
    stop_within(stopped, 5)  # two whole epochs and one step
    resumed = make_trainer(kind, plans, workspace, resume=True)
    resumed.load_checkpoint(str(folder / "fold_0" / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    logged = resumed.logger.get_checkpoint()
    for name in ("train_losses", "val_losses", "lrs", *whole.logged_terms()):
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-6, equal_nan=True)
    for name, weight in checkpoint(workspace, kind.__name__)["network_weights"].items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-6, atol=1e-7)


def test_average_is_what_is_saved_and_validated(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.5}, method=NOW)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    content = checkpoint(workspace)
    own, averaged = content["nnunet_kd"]["average"], content["network_weights"]
    assert content["nnunet_kd"]["average_shown"]
    assert any(not torch.equal(own[name], averaged[name]) for name in own)
    torch.testing.assert_close({**trainer.trained().average.network.state_dict()}, {**averaged})
    assert all(torch.equal(own[name], weight) for name, weight in trainer.trained().student.named_parameters())


@pytest.mark.parametrize("averaged", [True, False])
def test_an_average_may_begin_or_end_where_a_training_goes_on(workspace, averaged):
    schedule = {**SHORT, "save_every": 1}
    begun, now = (
        workspace.plans("nnUNetPlans", training={**schedule, **({"ema_decay": 0.5} if decay else {})})
        for decay in (averaged, not averaged)
    )
    stop_within(make_trainer(nnUNetTrainerNoKD, begun, workspace), 3)
    saved = checkpoint(workspace, "nnUNetTrainerNoKD", name="latest")
    own = saved["nnunet_kd"]["average"] if averaged else saved["network_weights"]
    trainer = make_trainer(nnUNetTrainerNoKD, now, workspace, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    student = trainer.trained().student
    assert_same = torch.testing.assert_close
    evaluated = trainer.trained().evaluated.state_dict()  # what would be validated
    assert_same({**evaluated}, {**saved["network_weights"]}, rtol=0, atol=0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    state = student.state_dict()
    assert_same({name: state[name] for name in own}, {**own}, rtol=0, atol=0)
    if averaged:
        assert any(not torch.equal(own[name], saved["network_weights"][name]) for name in own)
        assert trainer.trained().average is None
    else:
        assert_same({**trainer.trained().average.network.state_dict()}, {**saved["network_weights"]}, rtol=0, atol=0)


@pytest.mark.parametrize(("begun", "now"), [({}, {"optimizer": "adamw"}), ({"optimizer": "adamw"}, {})])
def test_a_training_does_not_go_on_with_another_optimizer(workspace, begun, now):
    plans = [workspace.plans("nnUNetPlans", training={**SHORT, "save_every": 1, **one}) for one in (begun, now)]
    stop_within(make_trainer(nnUNetTrainerNoKD, plans[0], workspace), 3)
    trainer = make_trainer(nnUNetTrainerNoKD, plans[1], workspace, resume=True)
    with pytest.raises(ValueError, match=f"begun with {begun.get('optimizer', 'SGD')} as its optimizer"):
        maybe_load_checkpoint(trainer, True, False)


def test_average_follows_every_step(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.5})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.on_train_start()
    student = trainer.trained().student
    passed = [{name: weight.detach().clone() for name, weight in student.named_parameters()}]
    step = trainer.train_step

    def remembering(batch):
        numbers = step(batch)
        passed.append({name: weight.detach().clone() for name, weight in student.named_parameters()})
        return numbers

    trainer.train_step = remembering
    trainer.run_training()
    assert len(passed) == 1 + 4
    saved = checkpoint(workspace, "nnUNetTrainerNoKD")["network_weights"]
    for name in passed[0]:
        expected = passed[0][name]
        for weights in passed[1:]:
            expected = (expected + weights[name]) / 2
        torch.testing.assert_close(saved[name], expected)


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_a_step_without_terms_is_nnunets_own(workspace, factor):
    """Clipping of large gradients, momentum, weight decay and all."""
    whole = workspace.plans("nnUNetPlans", training=SHORT, student={"reduction": 1})
    ours = make_trainer(nnUNetTrainerNoKD, whole, workspace)
    theirs = make_trainer(nnUNetTrainer, workspace.plans("nnUNetPlans"), workspace)
    for trainer in (ours, theirs):
        trainer.initialize()
        trainer.network.train()
    theirs.network.load_state_dict(ours.trained().student.state_dict())
    deep = {"data": torch.randn(2, ours.num_input_channels, *ours.configuration_manager.patch_size)}
    shapes = [logits.shape[2:] for logits in theirs.network(deep["data"])]
    deep["target"] = [torch.randint(0, 2, (2, 1, *shape)).float() for shape in shapes]
    for trainer in (ours, theirs):
        loss = trainer.loss
        trainer.loss = lambda output, target, loss=loss: factor * loss(output, target)
        losses = [float(trainer.train_step(deep)["loss"]) for _ in range(3)]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.network.parameters() if p.grad is not None])
        trainer.seen = [*losses, float(norm)]
    assert ours.seen == pytest.approx(theirs.seen, rel=1e-4)
    assert ours.seen[-1] == pytest.approx(12, rel=1e-4) if factor > 1 else ours.seen[-1] < 12
    mine, stock = ours.trained().student, theirs.network
    torch.testing.assert_close(mine.state_dict(), stock.state_dict(), rtol=1e-4, atol=1e-5)
    for a, b in zip(mine.parameters(), stock.parameters(), strict=True):
        if b.grad is not None:
            momenta = ours.optimizer.state[a]["momentum_buffer"], theirs.optimizer.state[b]["momentum_buffer"]
            torch.testing.assert_close(*momenta, rtol=1e-3, atol=1e-4)


def test_a_convex_term_takes_its_share_when_its_ramp_has_begun(workspace):
    method = {"ramp": [1, 0], "weight": 0.25}
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=method)
    make_trainer(nnUNetTrainerLogitsKD, plans, workspace).run_training()
    logged = checkpoint(workspace, "nnUNetTrainerLogitsKD")["logging"]
    segmentation, logits = logged["segmentation"], logged["logits"]
    assert logged["train_losses"] == pytest.approx([segmentation[0], 0.75 * segmentation[1] + 0.25 * logits[1]])


def test_settings_of_the_block_reach_nnunet(workspace):
    training = {**SHORT, "initial_lr": 0.003, "save_every": 7, "seed": None}
    plans = workspace.plans("nnUNetPlans", training=training, student={"source_plans": "other"})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    got = (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch)
    assert got == (2, 2, 1) and trainer.initial_lr == 0.003 and trainer.save_every == 7 and trainer.seed is None
    trainer.run_training()  # plans with a student block keep their widths, and nnU-Net loads unseeded
    widths = trainer.configuration_manager.network_arch_init_kwargs["features_per_stage"]
    assert (
        widths == workspace.plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    )


def test_class_attributes_come_after_the_block(workspace):
    class Short(nnUNetTrainerNoKD):
        num_epochs = 7
        initial_lr = 0.5
        seed = 3
        ema_decay = 0.5

    trainer = make_trainer(Short, workspace.plans("nnUNetPlans", training={"num_epochs": 3}), workspace)
    assert (trainer.num_epochs, trainer.initial_lr, trainer.num_iterations_per_epoch) == (3, 0.5, 250)
    trainer.initialize()
    assert trainer.seed == 3 and trainer.trained().average.decay == 0.5


@pytest.mark.parametrize(
    ("student", "divisor"),
    [
        ({"reduction": 8, "min_features": 2}, 8),
        ({"source_plans": "nnUNetPlans", "reduction": 2}, 2),
        ({"source_plans": "other", "reduction": 8}, 1),
        (None, 4),
    ],
    ids=str,
)
def test_widths_are_derived_unless_the_plans_are_a_students(workspace, student, divisor):
    before = workspace.plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    block = {} if student is None else {"student": student}
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=SHORT, **block), workspace)
    widths = trainer.configuration_manager.network_arch_init_kwargs["features_per_stage"]
    assert widths == [width // divisor for width in before]


def test_the_average_begins_with_the_weights_training_begins_with(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.9})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.initialize()
    with torch.no_grad():  # as nnU-Net's -pretrained_weights does
        for parameter in trainer.trained().student.parameters():
            parameter.fill_(3.0)
    trainer.on_train_start()
    averaged = trainer.trained().average.network.parameters()
    assert all((parameter == 3).all() for parameter in averaged)


def test_resuming_with_other_adapters_is_refused(workspace):
    """A term of the same name whose options ask for others."""
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    make_trainer(nnUNetTrainerDualSelfKD, plans, workspace).run_training()
    path = str(workspace.results / "nnUNetTrainerDualSelfKD__nnUNetPlans__3d_fullres" / "fold_0/checkpoint_final.pth")
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"beta": 0})
    changed = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace)
    with pytest.raises(ValueError, match="begun with other options of its terms, which need other adapters"):
        changed.load_checkpoint(path)


def test_two_trainings_that_are_stopped_leave_the_one_before_them(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 3, "overwrite": True})
    first = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    first.run_training()
    folder = Path(first.output_folder)
    old = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    aside = {f"earlier_{name}": content for name, content in old.items()}
    for number in (2, 3):  # each may have run for days
        stop_within(make_trainer(nnUNetTrainerNoKD, plans, workspace), 3)
        assert {path.name: path.read_bytes() for path in folder.glob("earlier_*.pth")} == aside
        assert not (folder / "checkpoint_final.pth").exists()
        for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
            aside[f"earlier_{number}_{name}"] = (folder / name).read_bytes()
    make_trainer(nnUNetTrainerNoKD, plans, workspace).run_training()
    assert sorted(path.name for path in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]


def test_the_best_of_a_training_that_was_killed_stays_the_best(workspace):
    """nnU-Net saves the usual checkpoint of an epoch before it knows that the epoch is the best."""
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


def test_a_fitted_start_leaves_unseeded_loading_unseeded(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "seed": None, "initial_weights": "reconstructed"})
    drawn = []
    for seed in (1, 2):
        trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
        trainer.initialize()
        torch.manual_seed(seed)
        np.random.seed(seed)
        trainer.on_train_start()
        drawn.append((torch.rand(()).item(), np.random.random()))
        trainer.on_train_end()
        Path(trainer.output_folder, "checkpoint_final.pth").unlink()
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


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
    make_trainer(nnUNetTrainerDCD, heavier, workspace).load_checkpoint(path)  # numbers may change


def test_a_training_made_anew_goes_on_with_its_own_checkpoints(workspace):
    """And not with the end of the one before, under the settings of the new one."""
    schedule = {**SHORT, "num_epochs": 3, "save_every": 1}
    first = workspace.plans("nnUNetPlans", training=schedule, method={**NOW, "weight": 0.01}, teacher={"folds": [1]})
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    make_trainer(nnUNetTrainerDCD, first, workspace).run_training()
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    assert recorded_leakage(json.loads((folder.parent / "plans.json").read_text()))
    old = (folder / "checkpoint_final.pth").read_bytes()

    anew = {**schedule, "overwrite": True}
    second = workspace.plans("nnUNetPlans", training=anew, method={**NOW, "weight": 5})
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


def test_checkpoints_tell_the_settings_of_all_their_epochs(workspace):
    schedule = {**SHORT, "num_epochs": 3, "save_every": 1}
    weights = [0.01, 0.02, 0.03]
    plans = [workspace.plans("nnUNetPlans", training=schedule, method={**NOW, "weight": w}) for w in weights]
    stop_within(make_trainer(nnUNetTrainerDCD, plans[0], workspace), 3)
    for now in plans[1:]:  # two epochs with the second, none with the third
        trainer = make_trainer(nnUNetTrainerDCD, now, workspace, resume=True)
        maybe_load_checkpoint(trainer, True, False)
        trainer.run_training()
        own = checkpoint(workspace)["nnunet_kd"]
        assert own["record"]["terms"][0].startswith("dcd: weight 0.02")
        assert [record["terms"][0][:16] for record in own["earlier_records"]] == ["dcd: weight 0.01"]
    text = "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("training_log_*.txt")))
    assert text.count('goes on with other settings than it was begun with: terms ["dcd: weight 0.01') == 1
    assert text.count('was trained with other settings than the plans have now: terms ["dcd: weight 0.02') == 1


def test_the_record_tells_the_batch(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    before = make_trainer(nnUNetTrainerNoKD, plans, workspace).preparation
    before = record_of(before)
    plans["configurations"]["3d_fullres"]["batch_size"] = 7
    now = record_of(make_trainer(nnUNetTrainerNoKD, plans, workspace).preparation)
    assert changes(now, before) == f"batch_size {before['batch_size']}, now 7"
    assert changes(now, {key: value for key, value in before.items() if key != "batch_size"}) == ""  # of before 0.1


@pytest.mark.parametrize(
    ("trainer", "method"),
    [
        (nnUNetTrainerLogitsKD, {"convex": False}),
        (nnUNetTrainerLogitsKD, {"scales": "full"}),
        (nnUNetTrainerDCD, {"stages": [0]}),
        (nnUNetTrainerSAMKD, {"hard_loss": "ce"}),
        (nnUNetTrainerSAMKD, {"store": "medsam"}),
    ],
)
def test_the_record_tells_all_of_a_term(workspace, trainer, method):
    def prepared(method):
        plans = workspace.plans("nnUNetPlans", training={"num_epochs": 20}, method=method)
        return record_of(prepare(trainer, Experiment(plans, "3d_fullres", workspace.dataset_json), 0))

    before, now = prepared({}), prepared(method)
    (key,) = method
    assert changes(now, before).startswith("term_options [") and key in changes(now, before)
    assert changes(prepared({}), before) == changes(now, now) == ""
    del before["term_options"]  # of before 0.1
    assert changes(now, before) == ""


def test_a_longer_training_goes_on_with_its_own_saves(workspace):
    """And not from where it was to end before, each time it is stopped."""
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


def test_null_in_the_schedule_is_the_trainers_own(workspace):
    """And of the other settings: none, whatever the trainer's recipe has."""
    nothing = dict.fromkeys(("num_epochs", "initial_lr", "save_every", "ema_decay", "initial_weights"))
    plans = workspace.plans("nnUNetPlans", training=nothing)
    experiment = Experiment(plans, "2d", workspace.dataset_json)
    training = prepare(nnUNetTrainerBrainSegDMIF, experiment, 0).settings.training
    assert (training.num_epochs, training.initial_lr, training.save_every) == (200, 1e-4, None)
    assert nnUNetTrainerKD.recipe and prepare(nnUNetTrainerKD, experiment, 0).settings.training == TrainingSettings()


class FiveEpochs(nnUNetTrainerDCD):
    """As nnU-Net's own variants of its trainer are written."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 5


def test_terms_follow_a_schedule_that_a_subclass_sets(workspace):
    plans = workspace.plans("nnUNetPlans", teacher={"trainer": "nnUNetTrainer"})
    trainer = make_trainer(FiveEpochs, plans, workspace)
    trainer.initialize()
    (term,) = trainer.preparation.terms
    assert (term.ramp.start, term.ramp.length) == (0.75, 4.0) and term.weight_at(4) > 0
    record = trainer.own_state()["record"]
    assert record["num_epochs"] == 5 and record["terms"] == [str(term)]


class BesideNNUNets(nnUNetTrainerDCD, nnUNetTrainer_5epochs):
    """Whose schedule nnU-Net's class sets within the constructor here."""


def test_terms_follow_a_schedule_that_a_trainer_of_nnunet_sets(workspace):
    plans = workspace.plans("nnUNetPlans", teacher={"trainer": "nnUNetTrainer"})
    trainer = make_trainer(BesideNNUNets, plans, workspace)
    trainer.initialize()
    (term,) = trainer.preparation.terms
    assert (term.ramp.start, term.ramp.length) == (0.75, 4.0)
    assert trainer.own_state()["record"]["num_epochs"] == 5
    given = workspace.plans("nnUNetPlans", teacher={"trainer": "nnUNetTrainer"}, training={"num_epochs": 8})
    assert make_trainer(BesideNNUNets, given, workspace).num_epochs == 8  # plans override


class SavesOften(nnUNetTrainerNoKD):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.save_every = 300, 7


@pytest.mark.parametrize(
    ("kind", "training", "expected"),
    [
        (nnUNetTrainerNoKD, {}, 50),
        (nnUNetTrainerNoKD, {"num_epochs": 12}, 1),
        (nnUNetTrainerNoKD, {"num_epochs": 3}, 1),
        (nnUNetTrainerNoKD, {"num_epochs": 12, "save_every": 5}, 5),
        (nnUNetTrainerNoKD, {"num_epochs": 100, "save_every": 50}, 50),
        (FiveEpochs, {}, 1),
        (BesideNNUNets, {}, 1),
        (BesideNNUNets, {"num_epochs": 250}, 25),
        (SavesOften, {}, 7),
    ],
)
def test_saves_are_a_tenth_of_the_training_apart_unless_asked(workspace, kind, training, expected):
    plans = workspace.plans("nnUNetPlans", training=training, teacher={"trainer": "nnUNetTrainer"})
    trainer = make_trainer(kind, plans, workspace)
    trainer.initialize()
    assert trainer.save_every == expected
    assert ("save_every" in record_of(trainer.preparation)) == ("save_every" in training or kind is SavesOften)


def test_the_schedule_is_nnunets_own(workspace):
    trainer = make_trainer(nnUNetTrainer, workspace.plans("nnUNetPlans"), workspace)
    assert {key: getattr(trainer, key) for key in SCHEDULE} == SCHEDULE


def test_residual_encoder_student_of_a_plain_teacher(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["dcd"]).all()


def test_a_trainer_without_a_method_can_share_its_plans_with_one(workspace):
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", method={"weight": 1}), workspace)
    trainer.on_train_start()
    assert "nnunet_kd.method of the plans is not used" in Path(trainer.log_file).read_text()


def test_network_without_an_encoder_is_refused_before_training(workspace):
    teacher = {"plans": "nnUNetPlans"}
    plans = workspace.plans("nnUNetPlans", training=SHORT, student={"source_plans": "other"}, teacher=teacher)
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "tests.training.test_trainer.NoEncoder",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    }
    with pytest.raises(NotImplementedError, match="NoEncoder has no encoder that lists output_channels"):
        make_trainer(nnUNetTrainerDCD, plans, workspace)
    assert not (workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres").exists()


class NoEncoder(torch.nn.Module):
    def __init__(self, input_channels, num_classes, deep_supervision=False):
        super().__init__()


def test_a_finished_training_is_not_begun_again_unasked(workspace):
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
    logs = {*folder.glob("fold_0/training_log_*.txt")}  # nnU-Net opens them with every trainer
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in logs} == {
        path: content for path, content in before.items() if path not in logs
    }
    asked = workspace.plans("nnUNetPlans", training={**SHORT, "overwrite": True})
    trainer = make_trainer(nnUNetTrainerNoKD, asked, workspace)
    trainer.run_training()
    record = torch.load(weights, weights_only=False)["nnunet_kd"]["record"]
    assert changes(record_of(trainer.preparation), record) == ""
    assert weights.read_bytes() != before[weights] and not list(folder.glob("fold_0/earlier*"))


def test_a_finished_training_validates_without_its_teacher(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerDCD, plans, workspace)
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0"
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.perform_actual_validation()
    assert (folder / "validation" / "summary.json").is_file()


@pytest.mark.slow
def test_stock_commands_train_resume_and_predict_with_no_teacher_present(workspace):
    """The four lines of the README, short; loading workers and all."""
    training = {**SHORT, "num_epochs": 3}
    workspace.plans("nnUNetPlans_short", training=training, teacher={"plans": "nnUNetPlans"}, method={"ramp": [1, 2]})
    options = ["598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "nnUNetPlans_short", "-device", "cpu"]
    printed = workspace.process("nnUNetv2_train", *options, nnUNet_n_proc_DA="2")
    assert "distilling dcd: weight 0.01, ramp from epoch 1 over 2" in printed
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans_short__3d_fullres"
    logged = checkpoint(workspace, plans="nnUNetPlans_short")["logging"]

    final = folder / "fold_0" / "checkpoint_final.pth"
    final.unlink()  # what is left is the best, of some earlier epoch
    workspace.process("nnUNetv2_train", *options, "--c", nnUNet_n_proc_DA="1")
    resumed = checkpoint(workspace, plans="nnUNetPlans_short")["logging"]
    np.testing.assert_allclose(resumed["train_losses"], logged["train_losses"], rtol=1e-5)

    shutil.rmtree(workspace.teacher)
    output = workspace.root / "predicted"
    arguments = ["-i", str(workspace.raw / "imagesTs"), "-o", str(output), "-d", "598", "-c", "3d_fullres", "-f", "0"]
    arguments += ["-tr", "nnUNetTrainerDCD", "-p", "nnUNetPlans_short", "-device", "cpu", "-npp", "1", "-nps", "1"]
    workspace.process("nnUNetv2_predict", *arguments)
    assert [path.name for path in output.glob("*.nii.gz")] == ["head_006.nii.gz"]
