"""A teacher's weights are read without running code, and are those with which nnU-Net predicts."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from nnunet_kd.nnunet.checkpoint import read_checkpoint
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.training.record import record_of
from tests.conftest import SHORT, make_trainer
from tests.teachers.refused import edit_configuration, refused


def test_truncated_checkpoint(workspace):
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(
        workspace, ValueError, "cannot read checkpoint .*checkpoint_final.pth: it is truncated or not a PyTorch file"
    )


def test_garbage_instead_of_a_checkpoint(workspace):
    (workspace.teacher / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint at all")
    refused(workspace, ValueError, "cannot read checkpoint")


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


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


def test_code_in_a_checkpoint_is_not_run(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "extra": Malice()}, path)
    refused(workspace, ValueError, 'contains more than weights and numbers.*set "trust_checkpoint": true')
    path.write_bytes(pickle.dumps(Malice()))
    refused(workspace, ValueError, "cannot read checkpoint|contains more than weights")
    assert not (tmp_path / "malice").exists()


def test_the_message_asks_for_trust_and_trust_is_used(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "extra": Malice()}, path)
    assert "network_weights" in read_checkpoint(path, trust=True)
    assert (tmp_path / "malice").exists()


def test_a_file_that_is_not_a_checkpoint_of_nnunet(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not a checkpoint of an nnU-Net trainer"):
        read_checkpoint(tmp_path / "other.pth")


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


def test_a_teacher_in_bfloat16_is_close_to_float32(workspace):
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


@pytest.mark.slow
def test_students_of_a_teacher_in_bfloat16_train(workspace):
    terms = [{"name": name} for name in ("dcd", "fitnets", "cwd", "ifvd", "freekd")]
    plans = workspace.plans(
        training={**SHORT, "num_iterations_per_epoch": 1},  # the first of two epochs tunes FreeKD's prompts
        teacher={"precision": "bfloat16"},
        method={"terms": [{**term, "ramp": None} for term in terms]},
    )
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace, configuration="2d")  # quick on a CPU
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert all(np.isfinite(logged[term["name"]][-1]) for term in terms)
    assert record_of(trainer.preparation)["teachers"][0]["precision"] == "bfloat16"


def test_unknown_precision_is_refused(workspace):
    plans = workspace.plans(teacher={"precision": "float8"})
    refused(workspace, ValueError, 'nnunet_kd.teacher.precision must be "bfloat16" or null', plans)
