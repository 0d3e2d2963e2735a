"""Settings and schedules of a training from all their sources, and the record of them."""

from pathlib import Path

import pytest
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.settings import SCHEDULE, TrainingSettings
from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from nnunet_kd.training.preparation import prepare
from nnunet_kd.training.record import changes, record_of
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import NOW, checkpoint


def test_settings_of_the_block_reach_nnunet(workspace):
    training = {**SHORT, "initial_lr": 0.003, "save_every": 7, "seed": None}
    plans = workspace.plans("nnUNetPlans", training=training, student={"source_plans": "other"})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    got = (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch)
    assert got == (2, 2, 1) and trainer.initial_lr == 0.003 and trainer.save_every == 7 and trainer.seed is None
    trainer.run_training()  # a student block keeps the widths, and loading is unseeded
    widths = trainer.configuration_manager.network_arch_init_kwargs["features_per_stage"]
    assert (
        widths == workspace.plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_deep_supervision_can_be_left_out(workspace, wanted):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "deep_supervision": wanted})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.initialize()
    assert trainer.trained().student.decoder.deep_supervision is wanted
    assert isinstance(trainer.loss, DeepSupervisionWrapper) is wanted


@pytest.mark.parametrize(("given", "fold", "expected"), [(None, 0, (2, 1)), (7, 0, (2, 7)), (None, "all", (2, 2))])
def test_an_epoch_can_be_one_pass_over_the_cases(workspace, given, fold, expected):
    plans = workspace.plans("nnUNetPlans", training={"num_val_iterations_per_epoch": given, "one_pass_per_epoch": True})
    plans["configurations"]["3d_fullres"]["batch_size"] = 3
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=fold)
    trainer.initialize()
    assert [len(cases) for cases in trainer.do_split()] == ([4, 2] if fold == 0 else [6, 6])
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == expected
    record = record_of(trainer.preparation)
    assert (record["num_iterations_per_epoch"], record["num_val_iterations_per_epoch"]) == expected


def test_records_of_earlier_versions_had_the_defaults(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    now = record_of(make_trainer(nnUNetTrainerNoKD, plans, workspace).preparation)
    added = ("deep_supervision", "one_pass_per_epoch", "plateau_patience", "cosine_epochs")
    before = {key: value for key, value in now.items() if key not in added}
    assert changes(now, before) == "" != changes({**now, "deep_supervision": False}, before)


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


def test_checkpoints_record_the_settings_of_all_their_epochs(workspace):
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
    assert text.count('training resumes with other settings than it began with: terms ["dcd: weight 0.01') == 1
    assert text.count('was trained with other settings than the plans have now: terms ["dcd: weight 0.02') == 1


def test_the_record_includes_the_batch(workspace):
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
def test_the_record_includes_all_options_of_a_term(workspace, trainer, method):
    def prepared(method):
        plans = workspace.plans("nnUNetPlans", training={"num_epochs": 20}, method=method)
        return record_of(prepare(trainer, Experiment(plans, "3d_fullres", workspace.dataset_json), 0))

    before, now = prepared({}), prepared(method)
    (key,) = method
    assert changes(now, before).startswith("term_options [") and key in changes(now, before)
    assert changes(prepared({}), before) == changes(now, now) == ""
    del before["term_options"]  # of before 0.1
    assert changes(now, before) == ""


def test_null_in_the_schedule_means_the_trainers_own(workspace):
    """For other settings null means none, whatever the trainer's recipe has."""
    nothing = dict.fromkeys(("num_epochs", "initial_lr", "save_every", "ema_decay", "initial_weights"))
    plans = workspace.plans("nnUNetPlans", training=nothing)
    experiment = Experiment(plans, "2d", workspace.dataset_json)
    training = prepare(nnUNetTrainerBrainSegDMIF, experiment, 0).settings.training
    assert (training.num_epochs, training.initial_lr, training.save_every) == (200, 1e-4, None)
    assert nnUNetTrainerKD.recipe and prepare(nnUNetTrainerKD, experiment, 0).settings.training == TrainingSettings()


class FiveEpochs(nnUNetTrainerDCD):
    """A subclass written like nnU-Net's own variants of its trainer."""

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
    """A trainer whose schedule a class of nnU-Net sets within the constructor."""


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
def test_checkpoints_are_a_tenth_of_the_training_apart_by_default(workspace, kind, training, expected):
    plans = workspace.plans("nnUNetPlans", training=training, teacher={"trainer": "nnUNetTrainer"})
    trainer = make_trainer(kind, plans, workspace)
    trainer.initialize()
    assert trainer.save_every == expected
    assert ("save_every" in record_of(trainer.preparation)) == ("save_every" in training or kind is SavesOften)


def test_the_schedule_is_nnunets_own(workspace):
    trainer = make_trainer(nnUNetTrainer, workspace.plans("nnUNetPlans"), workspace)
    assert {key: getattr(trainer, key) for key in SCHEDULE} == SCHEDULE
