"""Trainings long enough for what builds up slowly: rounding in half precision, memory."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests import vm_unet_plans
from tests.conftest import make_trainer
from tests.training import small_brainseg_dmif, small_kd_sam
from tests.training.methods import METHODS, store_if_read

LONG = {"num_epochs": 2, "num_iterations_per_epoch": 100, "num_val_iterations_per_epoch": 1}
PLANS = {  # method -> plans of a method that brings a network or data of its own
    "BrainSegDMIF": lambda workspace, sam: small_brainseg_dmif.plans_for(workspace, LONG),
    "KDSAM": lambda workspace, sam: small_kd_sam.plans_for(workspace, sam, LONG, encoder_epochs=1),
    "DualSelfKD on VM-UNet": lambda workspace, sam: vm_unet_plans.plans_for(workspace, LONG),
}


@pytest.mark.parametrize("method", ["NoKD", "SAMKD", *METHODS, *PLANS])
def test_200_iterations_in_bfloat16_stay_finite(workspace, sam, monkeypatch, method):
    """Networks, losses and teachers under autocast on the CPU, in 2-D: a CPU convolves in bfloat16 very slowly."""
    for module in ("trainer", "kd_sam.trainer"):
        name = f"nnunet_kd.training.{module}.nullcontext"
        monkeypatch.setattr(name, lambda: torch.autocast("cpu", torch.bfloat16))
    if method in PLANS:
        plans = PLANS[method](workspace, sam)
    else:
        store_if_read(workspace, method, "2d")
        plans = workspace.plans("nnUNetPlans", training=LONG, method=METHODS.get(method, {}))
    name = f"nnUNetTrainer{method.split(' ')[0]}"
    kind = getattr(importlib.import_module(f"nnunet_kd.trainers.{name}"), name)
    trainer = make_trainer(kind, plans, workspace, configuration="2d")
    seen = set()
    trainer.initialize()
    trainer.network.register_forward_hook(lambda module, inputs, outputs: seen.update(dtypes(outputs)))
    trainer.run_training()
    assert torch.bfloat16 in seen
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["train_losses"]).all() and logged["skipped_steps"] == [0, 0]
    for term in trainer.preparation.terms:
        assert np.isfinite(logged[term.name][-1]), term.name
    assert all(torch.isfinite(weight).all() for weight in trainer.trained().state_dict().values())


def dtypes(outputs):
    if isinstance(outputs, torch.Tensor):
        return {outputs.dtype}
    return {dtype for output in outputs for dtype in dtypes(output)}


def test_memory_does_not_grow_over_2000_iterations(workspace):
    training = {**LONG, "num_epochs": 20}
    plans = workspace.plans("nnUNetPlans", training=training, method={"ramp": None})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    memory = []
    step = trainer.train_step

    def sampled(batch):
        numbers = step(batch)
        memory.append(resident_mebibytes())
        return numbers

    trainer.train_step = sampled
    trainer.run_training()
    assert len(memory) == 2000
    (workspace.root / "memory.json").write_text(json.dumps(memory))
    early, late = max(memory[100:600]), max(memory[1500:])
    print(f"MiB: {memory[0]:.0f} at first, {early:.0f} up to step 600, {late:.0f} up to step 2000")
    assert late <= early + 8


def resident_mebibytes() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
