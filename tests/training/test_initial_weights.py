"""Students whose initial weights come from their teacher."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import SHORT, make_trainer, stop_within

FROM_TEACHER = {**SHORT, "initial_weights": "teacher"}
RECONSTRUCTED = {**SHORT, "initial_weights": "reconstructed"}


def test_a_restarted_training_starts_from_the_teacher_again(workspace):
    """Train without --c in a folder with checkpoints of an earlier training."""
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher={"folds": [0]})
    first = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    stop_within(first, 3)
    assert (Path(first.output_folder) / "checkpoint_latest.pth").is_file()
    again = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    assert again.sources.start is None  # the training might be about to resume
    again.initialize()
    own = again.trained().student.state_dict()
    for name, weight in first.sources.start.weights.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=0)
    stop_within(again, 1)
    assert recorded_leakage(json.loads((Path(first.output_folder_base) / "plans.json").read_text()))["1"]


@pytest.mark.parametrize("kind", [nnUNetTrainerNoKD, nnUNetTrainerDCD])
def test_a_training_starts_from_the_teacher(workspace, kind):
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER)
    trainer = make_trainer(kind, plans, workspace)
    trainer.initialize()
    taught = torch.load(workspace.teacher / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    own = trainer.trained().student.state_dict()
    assert own.keys() == taught.keys()
    name = "encoder.stages.0.0.convs.0.conv.weight"
    rows = torch.arange(own[name].shape[0]) * taught[name].shape[0] // own[name].shape[0]
    torch.testing.assert_close(own[name], taught[name][rows], rtol=0, atol=0)
    trainer.run_training()
    again = make_trainer(kind, plans, workspace)
    assert again.sources.start is None  # a resumed training needs no teacher
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    for key, weight in trainer.trained().student.state_dict().items():
        torch.testing.assert_close(again.trained().student.state_dict()[key], weight, rtol=0, atol=0)


def test_leakage_through_the_initial_weights_is_recorded(workspace):
    """This holds even if nothing else is distilled, and if the training resumes without the teacher."""
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher={"folds": [0]})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    assert "LEAKAGE" in trainer.sources.start.leakage
    stop_within(trainer, 3)
    results = Path(trainer.output_folder_base) / "plans.json"
    assert recorded_leakage(json.loads(results.read_text())) == {"1": trainer.sources.start.leakage}
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1, resume=True)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    again.run_training()
    assert recorded_leakage(json.loads(results.read_text())) == {"1": trainer.sources.start.leakage}


def test_a_different_network_cannot_start_from_the_teacher(workspace):
    plans = workspace.plans("dra", training=FROM_TEACHER, teacher={"plans": "nnUNetPlans"})
    dra = student_plans(plans, 4, network="dra_unet")
    dra["nnunet_kd"] = {"student": {"source_plans": "nnUNetPlans"}, **plans["nnunet_kd"]}
    with pytest.raises(ValueError, match="initial_weights: the student has other layers .*; set it to null"):
        make_trainer(nnUNetTrainerNoKD, dra, workspace)
    assert not (workspace.results / "nnUNetTrainerNoKD__dra__3d_fullres").exists()


def test_the_message_for_several_teachers_tells_what_to_do(workspace):
    """The settings in the message work literally."""
    teachers = [{}, {}]
    message = 'the plans name 2: keep one of them in nnunet_kd.teacher, or set "training": {"initial_weights": null}'
    with pytest.raises(ValueError, match=re.escape(message) + "$"):  # a trainer without terms, whatever the plans say
        make_trainer(
            nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher=teachers), workspace
        )
    with pytest.raises(ValueError) as refused:
        make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", training=SHORT, teacher=teachers), workspace)
    start, terms = re.findall(r'"(?:training|method)": (\{.*?\}(?:\]\})?)(?:,| to)', str(refused.value))
    training, method = {**SHORT, **json.loads(start)}, json.loads(terms)
    one = make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", training=SHORT, teacher=teachers[:1]), workspace)
    assert one.sources.start is not None
    plans = workspace.plans("nnUNetPlans", training=training, method=method, teacher=teachers)
    together = make_trainer(nnUNetTrainerKD, plans, workspace)
    together.run_training()
    assert len(together.distiller.teacher.teachers) == 2 and together.sources.start is None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "start"), [(nnUNetTrainerNoKD, "pruned"), (nnUNetTrainerDCD, "reconstructed")])
def test_a_training_starts_from_fitted_weights(workspace, kind, start):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "initial_weights": start, "ema_decay": 0.5})
    weights = []
    for _ in range(2):  # the second time as if killed before anything was saved
        trainer = make_trainer(kind, plans, workspace)
        trainer.on_train_start()
        weights.append(copy.deepcopy(trainer.trained().student.state_dict()))
        trainer.on_train_end()
        Path(trainer.output_folder, "checkpoint_final.pth").unlink()
    plain = workspace.plans("nnUNetPlans", training={**SHORT, "initial_weights": "teacher"})
    selected = make_trainer(kind, plain, workspace)
    selected.initialize()
    name = "encoder.stages.0.0.convs.1.conv.weight"
    assert not torch.equal(weights[0][name], selected.trained().student.state_dict()[name])
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())
    assert torch.equal(trainer.trained().average.network.state_dict()[name], weights[0][name])
    assert trainer.sources.start.teacher is None  # the teacher is not kept
    log = Path(trainer.log_file).read_text()
    assert "fitted to the teacher's outputs on 12 training patches" in log  # the minimum, because the training is short
    assert "layers fitted to the teacher's" in log
    assert re.search(r"Dice on other training patches \(the teacher's\): .+ \d\.\d\d \(\d\.\d\d\)", log)
    assert ("initial weights: the best channels of " in log) == (start == "pruned")
    said = json.loads(log.partition(": settings ")[2].partition("\n")[0])
    assert said.items() >= {**SHORT, "seed": 1234, "ema_decay": 0.5, "initial_weights": start}.items()
    assert said["terms"] == [str(term) for term in trainer.preparation.terms]


def test_a_training_resumes_without_the_teacher(workspace):
    plans = workspace.plans("nnUNetPlans", training=RECONSTRUCTED)
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.run_training()
    again = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    assert again.sources.start is None
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    for key, weight in trainer.trained().student.state_dict().items():
        assert torch.equal(again.trained().student.state_dict()[key], weight)


def test_weights_that_were_loaded_later_are_kept(workspace):
    """nnUNetv2_train -pretrained_weights loads after the network is made."""
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=RECONSTRUCTED), workspace)
    trainer.initialize()
    with torch.no_grad():
        trainer.trained().student.decoder.seg_layers[-1].weight.zero_()
    trainer.on_train_start()
    assert not trainer.trained().student.decoder.seg_layers[-1].weight.any()
    assert "others were loaded" in Path(trainer.log_file).read_text()


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_starts_from_every_other_channel(workspace, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("PlainConvUNet cannot be traced: no")

    monkeypatch.setattr("nnunet_kd.pruning.pruning.sort_channels", refuse)
    weights = []
    for start in ("reconstructed", "pruned"):
        plans = workspace.plans("nnUNetPlans", training={**SHORT, "initial_weights": start})
        trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
        trainer.on_train_start()
        weights.append(trainer.trained().student.state_dict())
        log = Path(trainer.log_file).read_text()
        trainer.on_train_end()
        Path(trainer.output_folder, "checkpoint_final.pth").unlink()
    assert "every r-th channel of the teacher's: PlainConvUNet cannot be traced: no" in log
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())
