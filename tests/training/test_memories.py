"""CIRKD's memories in a training: they fill, resume with it bit by bit, and stay out of the student's weights."""

import shutil

import torch

from nnunet_kd.trainers.nnUNetTrainerCIRKD import nnUNetTrainerCIRKD
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import checkpoint

# not every voxel is remembered, nor every entry drawn: both depend on random numbers
METHOD = {"pixels": 2, "pixel_memory": 20, "region_memory": 8, "pixel_contrasts": 30, "region_contrasts": 12}


def test_memories_resume_bit_by_bit(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 4}, method=METHOD)
    whole = make_trainer(nnUNetTrainerCIRKD, plans, workspace)
    whole.initialize()
    start = {name: value.clone() for name, value in whole.trained().adapters.state_dict().items()}
    whole.run_training()
    expected = checkpoint(workspace, "nnUNetTrainerCIRKD")
    shutil.rmtree(workspace.results / "nnUNetTrainerCIRKD__nnUNetPlans__3d_fullres")
    memories = [name for name in start if name.rpartition(".")[2] in ("pixels", "regions")]
    saved = expected["nnunet_kd"]["adapters"]
    assert len(memories) == 2 * len(whole.distiller.stages)
    assert {saved[name].shape[0] for name in memories} == {whole.distiller.labels.num_classes}
    for name in memories:
        replaced = (saved[name] != start[name]).any(2).any(1)
        assert replaced[0], f"{name}: background is in every patch"
    assert not any("adapters" in name or "pixels" in name for name in expected["network_weights"])

    stopped = make_trainer(nnUNetTrainerCIRKD, plans, workspace)
    stop_within(stopped, 5)  # two complete epochs and one step
    resumed = make_trainer(nnUNetTrainerCIRKD, plans, workspace, resume=True)
    folder = workspace.results / "nnUNetTrainerCIRKD__nnUNetPlans__3d_fullres"
    resumed.load_checkpoint(str(folder / "fold_0" / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    now = checkpoint(workspace, "nnUNetTrainerCIRKD")
    torch.testing.assert_close(now["nnunet_kd"]["adapters"], saved, rtol=0, atol=0)
    torch.testing.assert_close(now["network_weights"], expected["network_weights"], rtol=0, atol=0)
    for name in ("train_losses", "cirkd", "logits"):
        assert now["logging"][name] == expected["logging"][name]
