"""A teacher that does not fit is refused in one sentence, before the student's results folder exists."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_kd.nnunet.checkpoint import read_checkpoint
from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerFitNets import nnUNetTrainerFitNets
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.training.record import record_of
from tests.conftest import SHORT, make_trainer, note_validated, stop_within


def refused(workspace, error, message, plans=None, kind=nnUNetTrainerDCD, **options):
    plans = plans or workspace.plans("nnUNetPlans", training=SHORT)
    before = sorted(workspace.results.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        make_trainer(kind, plans, workspace, **options)
    assert "\n" not in str(caught.value)
    assert sorted(workspace.results.rglob("*")) == before


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_configuration(workspace, **changes):
    path = workspace.teacher / "plans.json"
    configurations = json.loads(path.read_text())["configurations"]
    configurations["3d_fullres"].update(changes)
    edit(path, configurations=configurations)


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


def test_truncated_checkpoint(workspace):
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(workspace, ValueError, "cannot read checkpoint .*checkpoint_final.pth: it is truncated or no PyTorch file")


def test_garbage_instead_of_a_checkpoint(workspace):
    (workspace.teacher / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint at all")
    refused(workspace, ValueError, "cannot read checkpoint")


def test_wrong_number_of_channels(workspace):
    edit(workspace.teacher / "dataset.json", channel_names={"0": "T1"})
    refused(workspace, ValueError, "its number of input channels is 1, the student's 3")


def test_other_channels(workspace):
    edit(workspace.teacher / "dataset.json", channel_names={"0": "T1", "1": "FLAIR", "2": "T1C"})
    refused(workspace, ValueError, "its list of input channels is")


def test_other_labels(workspace):
    edit(workspace.teacher / "dataset.json", labels={"background": 0, "enhancing": 1, "oedema": 2})
    refused(workspace, ValueError, "its label list is .*'enhancing': 1")


def test_regions_in_another_order(workspace):
    """Their order is that of the network's channels."""
    labels = {"background": 0, "whole": [1, 2], "enhancing": 2}
    swapped = {"background": 0, "enhancing": 2, "whole": [1, 2]}
    edit(workspace.teacher / "dataset.json", labels=swapped, regions_class_order=[1, 2])
    edit(workspace.preprocessed / "dataset.json", labels=labels, regions_class_order=[1, 2])
    refused(workspace, ValueError, "its label list is .*enhancing.*whole.*, the student's .*whole.*enhancing")


def test_other_spacing(workspace):
    edit_configuration(workspace, spacing=[2.5, 2.0, 1.3])
    refused(workspace, ValueError, r"its spacing \(mm\) is \[2.5, 2.0, 1.3\], the student's \[2.5, 1.2")


def test_other_normalisation(workspace):
    edit_configuration(workspace, normalization_schemes=["NoNormalization"] * 3)
    refused(workspace, ValueError, "its intensity normalisation is .*NoNormalization.*the student's .*ZScore")


def test_other_axis_order(workspace):
    edit(workspace.teacher / "plans.json", transpose_forward=[2, 1, 0])
    refused(workspace, ValueError, r"its axis order is \[2, 1, 0\]")


def test_ct_needs_the_same_intensity_statistics(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    schemes = ["CTNormalization", "ZScoreNormalization", "ZScoreNormalization"]
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = schemes
    edit_configuration(workspace, normalization_schemes=schemes)
    statistics = json.loads((workspace.teacher / "plans.json").read_text())[
        "foreground_intensity_properties_per_channel"
    ]
    statistics["0"]["mean"] += 50
    edit(workspace.teacher / "plans.json", foreground_intensity_properties_per_channel=statistics)
    refused(workspace, ValueError, "its intensity statistics of channel 0 is", plans)


def test_other_configuration(workspace):
    refused(
        workspace,
        FileNotFoundError,
        "there is no teacher in .*__3d_lowres",
        configuration="3d_fullres",
        plans=workspace.plans("nnUNetPlans", teacher={"configuration": "3d_lowres"}),
    )


def test_unreadable_plans(workspace):
    (workspace.teacher / "plans.json").write_text("{")
    refused(workspace, ValueError, "cannot read the teacher's .*plans.json")


def test_weights_of_another_network(workspace):
    configurations = json.loads((workspace.teacher / "plans.json").read_text())["configurations"]
    architecture = configurations["3d_fullres"]["architecture"]
    architecture["arch_kwargs"]["features_per_stage"][0] = 16
    edit_configuration(workspace, architecture=architecture)
    refused(workspace, ValueError, "do not belong to the plans.json beside them")


def test_weights_that_are_not_finite(workspace):
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values())).view(-1)[0] = float("nan")
    torch.save(checkpoint, path)
    refused(workspace, ValueError, "the teacher's weights are not finite: encoder")


def test_patch_the_teacher_cannot_take(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    plans["configurations"]["3d_fullres"]["patch_size"] = [13, 20, 16]
    refused(
        workspace, ValueError, r"the student's patch \[13, 20, 16\] cannot be divided by the teacher's strides", plans
    )


def second_fold(workspace):
    """Another teacher: fold 1, the weights of fold 0 changed."""
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    path = workspace.teacher / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for weight in content["network_weights"].values():
        weight.mul_(1.1)
    torch.save(content, path)


@pytest.mark.parametrize("teacher", [{"folds": [0, 1]}, [{}, {"folds": [1]}]], ids=["folds", "list"])
def test_several_teachers_teach_together(workspace, teacher):
    second_fold(workspace)
    terms = [{"name": "dcd", "ramp": None}, {"name": "logits"}]
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher=teacher, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    trainer.run_training()
    ensemble = trainer.distiller.teacher
    images = torch.randn(1, 3, *trainer.configuration_manager.patch_size)
    logits, features = ensemble(images)
    each = [member(images) for member in ensemble.teachers]
    assert len(each) == 2 and not torch.equal(each[0][0][0], each[1][0][0])
    expected = (torch.softmax(each[0][0][0], 1) + torch.softmax(each[1][0][0], 1)) / 2
    torch.testing.assert_close(torch.softmax(logits[0], 1), expected)
    torch.testing.assert_close(features[1], (each[0][1][1] + each[1][1][1]) / 2)

    folder = workspace.results / "nnUNetTrainerKD__nnUNetPlans__3d_fullres"
    warning = "LEAKAGE: the teacher (fold 1) was trained on validation cases of student fold 0"
    assert warning in next((folder / "fold_0").glob("training_log*")).read_text()
    assert recorded_leakage(json.loads((folder / "plans.json").read_text()))["0"].startswith(warning)


def test_several_teachers_have_no_common_prompts(workspace):
    second_fold(workspace)
    plans = workspace.plans("nnUNetPlans", teacher={"folds": [0, 1]}, method={"terms": [{"name": "freekd"}]})
    message = "freekd tunes prompts on one teacher, there are 2: keep one in nnunet_kd.teacher, or another term"
    refused(workspace, NotImplementedError, message, plans, kind=nnUNetTrainerKD)


def test_features_of_teachers_of_different_width_are_refused(workspace):
    student = make_trainer(
        nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None}), workspace
    )
    student.run_training()  # a student is as good a teacher
    teachers = [{}, {"trainer": "nnUNetTrainerDCD"}]
    plans = workspace.plans("nnUNetPlans_two", teacher=[{"plans": "nnUNetPlans", **one} for one in teachers])
    message = r"same stages: teacher 0 has widths \[32, 64, 128\] .*, teacher 1 widths \[8, 16, 32\]"
    refused(workspace, ValueError, message, plans)
    plans["nnunet_kd"]["method"] = {"terms": [{"name": "logits"}]}
    plans["nnunet_kd"]["training"] = SHORT
    make_trainer(nnUNetTrainerKD, plans, workspace).run_training()


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


def test_code_in_a_checkpoint_is_not_run(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "extra": Malice()}, path)
    refused(workspace, ValueError, 'holds more than weights and numbers.*set "trust_checkpoint": true')
    path.write_bytes(pickle.dumps(Malice()))
    refused(workspace, ValueError, "cannot read checkpoint|holds more than weights")
    assert not (tmp_path / "malice").exists()


def test_trust_is_asked_for_and_used(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "extra": Malice()}, path)
    assert "network_weights" in read_checkpoint(path, trust=True)
    assert (tmp_path / "malice").exists()


def test_no_checkpoint_of_nnunet(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no checkpoint of an nnU-Net trainer"):
        read_checkpoint(tmp_path / "other.pth")


def test_teacher_of_another_fold_is_a_leak_that_is_written_down(workspace):
    (workspace.teacher / "fold_0").rename(workspace.teacher / "fold_1")
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.on_train_start()
    log = next((workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0").glob("training_log*"))
    warning = "LEAKAGE: the teacher (fold 1) was trained on validation cases of student fold 0"
    assert warning in log.read_text()
    assert notes(workspace)["0"].startswith(warning)


def notes(workspace):
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres"
    return recorded_leakage(json.loads((folder / "plans.json").read_text()))


def test_every_fold_keeps_its_own_note(workspace):
    """All folds share one plans.json; a finished training that is validated again has no teacher any more."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [0]}, method={"ramp": None})
    make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1).run_training()
    make_trainer(nnUNetTrainerDCD, plans, workspace, fold=0).on_train_start()
    assert list(notes(workspace)) == ["1"]
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1, resume=True)
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_1"
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.on_train_start()
    assert list(notes(workspace)) == ["1"] and "(fold 0)" in notes(workspace)["1"]
    assert "LEAKAGE" in max(folder.glob("training_log*")).read_text()


def test_a_note_stays_when_another_teacher_goes_on(workspace):
    """The student keeps what it has learnt."""
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    leaking = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    stop_within(make_trainer(nnUNetTrainerDCD, leaking, workspace), 3)
    noted = notes(workspace)
    assert noted["0"].startswith("LEAKAGE: the teacher (fold 1)")
    for plans in (leaking, workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None})):
        again = make_trainer(nnUNetTrainerDCD, plans, workspace, resume=True)
        again.load_checkpoint(f"{again.output_folder}/checkpoint_latest.pth")
        again.on_train_start()
        assert notes(workspace) == noted  # once
        again._lock.free()
    make_trainer(nnUNetTrainerDCD, plans, workspace).on_train_start()  # anew
    assert notes(workspace) == {}


def test_folds_that_begin_together_keep_their_notes(workspace):
    """Each writes the plans it read before it waited for its first batches."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [0]}, method={"ramp": None})
    trainers = [make_trainer(nnUNetTrainerDCD, plans, workspace, fold=fold) for fold in (1, 2)]
    file = Path(trainers[0].output_folder_base) / "plans.json"
    trainers[0].on_train_start()
    before = file.read_text()
    trainers[1].on_train_start()
    file.write_text(before)  # as where the first wrote last
    assert list(notes(workspace)) == ["1"]
    for trainer in trainers:
        trainer.on_train_end()
    assert sorted(notes(workspace)) == ["1", "2"] and "fold 2" in notes(workspace)["2"]

    again = make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1)
    again.on_train_start()
    file.write_text(before[:100])  # as while another fold writes it
    again.on_train_end()
    assert "the note of leakage may be lost" in Path(again.log_file).read_text()
    assert (Path(again.output_folder) / "checkpoint_final.pth").is_file()


def test_a_teacher_that_learnt_from_a_leaking_one_leaks_too(workspace):
    (workspace.teacher / "fold_0").rename(workspace.teacher / "fold_1")
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    plans = workspace.plans("nnUNetPlans", teacher={"trainer": "nnUNetTrainerDCD"}, method={"ramp": None})
    (leak,) = make_trainer(nnUNetTrainerFitNets, plans, workspace).sources.leakage()
    assert "That teacher's student is the teacher here." in leak


def test_a_teacher_of_another_data_set_may_leak(workspace):
    edit(workspace.teacher / "plans.json", dataset_name="Dataset999_Other")
    (leak,) = make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans"), workspace).sources.leakage()
    assert leak.startswith("LEAKAGE is possible: the teacher was trained on Dataset999_Other, whose folds")


def test_a_teacher_of_other_folds_leaks(workspace):
    """The data set was split anew since."""
    path = workspace.preprocessed / "splits_final.json"
    splits = json.loads(path.read_text())
    note_validated(workspace.teacher / "fold_0", splits[0]["val"])
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None})
    assert not make_trainer(nnUNetTrainerDCD, plans, workspace).sources.leakage()
    case = splits[0]["train"].pop()
    splits[0]["val"].append(case)
    path.write_text(json.dumps(splits))
    make_trainer(nnUNetTrainerDCD, plans, workspace).on_train_start()
    seen = f"1 of 3 validation cases of fold 0 ({case})"
    assert notes(workspace)["0"].startswith(f"LEAKAGE: the teacher was trained without keeping back {seen}. The")


def test_teacher_is_the_network_nnunet_predicts_with(workspace):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans = workspace.plans("nnUNetPlans", training=SHORT)
    teacher = make_trainer(nnUNetTrainerDCD, plans, workspace).distiller.teacher
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(workspace.teacher), (0,))
    images = torch.randn(1, 3, *predictor.configuration_manager.patch_size)
    with torch.no_grad():
        expected = predictor.network.eval().encoder(images)
    for ours, theirs in zip(teacher(images)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_teacher_in_bfloat16_gives_nearly_what_it_gives_in_float32(workspace):
    method = {"add": [{"name": "logits"}]}
    made = [
        make_trainer(nnUNetTrainerDCD, workspace.plans(teacher=teacher, method=method), workspace)
        for teacher in ({}, {"precision": "bfloat16"})
    ]
    images = torch.randn(1, 3, *made[0].configuration_manager.patch_size)
    types = set()
    for layer in made[1].distiller.teacher.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(lambda layer, given, output: types.add(output.dtype))
    usual, low = (trainer.distiller.teacher(images) for trainer in made)
    assert types == {torch.bfloat16}
    for ours, theirs in zip([*low[0], *low[1]], [*usual[0], *usual[1]], strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.02


def test_students_of_a_teacher_in_bfloat16_train(workspace):
    terms = [{"name": name} for name in ("dcd", "fitnets", "cwd", "ifvd", "freekd")]
    plans = workspace.plans(
        training=SHORT, teacher={"precision": "bfloat16"}, method={"terms": [{**term, "ramp": None} for term in terms]}
    )
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert all(np.isfinite(logged[term["name"]][-1]) for term in terms)
    assert record_of(trainer.preparation)["teachers"][0]["precision"] == "bfloat16"


def test_unknown_precision_is_refused(workspace):
    plans = workspace.plans(teacher={"precision": "float8"})
    refused(workspace, ValueError, 'nnunet_kd.teacher.precision must be "bfloat16" or null', plans)
