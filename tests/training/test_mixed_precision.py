"""Steps in float16 with a gradient scaler, as nnU-Net trains on a GPU, here with the mixed precision of the CPU."""

import math

import pytest
import torch

from nnunet_kd.trainers.nnUNetTrainerFitNets import nnUNetTrainerFitNets
from nnunet_kd.training import trainer as trainer_file
from nnunet_kd.training.faults import SKIPPED
from tests.conftest import SHORT, make_trainer


@pytest.fixture
def made(workspace, monkeypatch):
    """Return a function that makes a trainer, in float16 with a scaler or in float32."""

    def make(scaled):
        plans = workspace.plans("nnUNetPlans", training=SHORT)
        trainer = make_trainer(nnUNetTrainerFitNets, plans, workspace, configuration="2d")
        trainer.initialize()
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if scaled else None
        return trainer

    return make


def step(trainer, monkeypatch, factor=1.0):
    patch = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(0)
    images = factor * torch.randn(2, 3, *patch, generator=generator)
    target = torch.randint(0, 3, (2, 1, *patch), generator=generator).float()
    factors = trainer._get_deep_supervision_scales()
    scales = [[int(size * f) for size, f in zip(patch, one, strict=True)] for one in factors]
    targets = [torch.nn.functional.interpolate(target, scale, mode="nearest-exact") for scale in scales]
    with monkeypatch.context() as changed:
        if trainer.grad_scaler is not None:
            changed.setattr(trainer_file, "nullcontext", lambda: torch.autocast("cpu", torch.float16))
        return trainer.train_step({"data": images, "target": targets})


def vector(trainer):
    return torch.cat(
        [parameter.grad.flatten() for parameter in trainer.network.parameters() if parameter.grad is not None]
    )


def test_scaler_skips_lowers_its_scale_and_resumes(made, monkeypatch, tmp_path):
    half, single = made(True), made(False)
    for trainer in (half, single):
        trainer.network.train()
        assert not step(trainer, monkeypatch)[SKIPPED]
    assert 0.99 < torch.cosine_similarity(vector(half).double(), vector(single).double(), dim=0) < 1 - 1e-9

    weights = [parameter.detach().clone() for parameter in half.network.parameters()]
    numbers = step(half, monkeypatch, math.inf)
    assert numbers[SKIPPED] and half.grad_scaler.get_scale() == 2.0**11
    assert all(torch.equal(*pair) for pair in zip(weights, half.network.parameters(), strict=True))

    path = str(tmp_path / "checkpoint.pth")
    half.save_checkpoint(path)
    resumed = made(True)
    resumed.load_checkpoint(path)
    assert resumed.grad_scaler.get_scale() == 2.0**11
    both = [step(trainer, monkeypatch) for trainer in (half, resumed)]
    assert both[0] == both[1] and not both[0][SKIPPED]
    assert all(torch.equal(*pair) for pair in zip(half.network.parameters(), resumed.network.parameters(), strict=True))
