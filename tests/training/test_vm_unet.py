"""VM-UNet through nnU-Net's life cycle, with and without dual self-distillation."""

import json
import math

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import make_trainer
from tests.vm_unet_plans import NAME, plans_for


def test_plans_have_the_papers_network_and_optimizer(workspace, capsys):
    assert main(["plan", "-d", "598", "--network", "vm_unet"]) == 0
    assert (
        "train it: nnUNetv2_train 598 2d 0 -tr nnUNetTrainerDualSelfKD -p nnUNetPlans_vm_unet"
        in capsys.readouterr().out
    )
    plans = json.loads((workspace.preprocessed / f"{NAME}.json").read_text())
    (content,) = plans["configurations"].values()
    assert content["architecture"]["arch_kwargs"]["features_per_stage"] == [96, 192, 384, 768]
    assert content["patch_size"] == [32, 32]  # enlarged from 24 x 20
    assert plans["nnunet_kd"]["training"] == {"optimizer": "adamw", "initial_lr": 0.001}
    assert main(["plan", "-d", "598", "--network", "vm_unet", "-r", "8"]) == 0
    reduced = json.loads((workspace.preprocessed / f"{NAME}_r8.json").read_text())
    assert reduced["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [12, 24, 48, 96]
    assert main(["plan", "-d", "598", "--network", "vm_unet", "--widths", "8", "8", "16", "16"]) == 0
    assert (workspace.preprocessed / f"{NAME}_w8_8_16_16.json").is_file()
    assert main(["plan", "-d", "598", "--network", "vm_unet", "-r", "0", "-o", "none"]) == 1


@pytest.mark.parametrize("kind", [nnUNetTrainer, nnUNetTrainerNoKD, nnUNetTrainerDualSelfKD])
def test_any_trainer_trains_it(workspace, kind):
    trainer = make_trainer(kind, plans_for(workspace), workspace, configuration="2d")
    if kind is nnUNetTrainer:
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["train_losses"]).all()
    folder = workspace.results / f"{kind.__name__}__{NAME}__2d" / "fold_0"
    names = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert any("decoder.bottleneck" in name for name in names) and not any("adapters" in name for name in names)
    if kind is nnUNetTrainerDualSelfKD:
        assert len(logged["dual_self"]) == 2 and np.isfinite(logged["dual_self"]).all()
        assert trainer.trained().student.encoder.output_channels == [8, 16, 32, 64]


def test_adamw_follows_half_a_cosine(workspace):
    trainer = make_trainer(nnUNetTrainerNoKD, plans_for(workspace, {"num_epochs": 5}), workspace, configuration="2d")
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    rates = []
    for epoch in range(5):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    expected = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(5)]
    np.testing.assert_allclose(rates, expected)


@pytest.mark.slow
@pytest.mark.xdist_group("pictures")  # made once
def test_pictures_through_stock_commands(pictures, tmp_path):
    """Train with and without dual self-distillation, and predict."""
    plans_for(pictures, {"num_iterations_per_epoch": 8})
    for trainer in ("nnUNetTrainerNoKD", "nnUNetTrainerDualSelfKD"):
        pictures.command("nnUNetv2_train", "597", "2d", "0", "-tr", trainer, "-p", NAME, "-device", "cpu")
    out = tmp_path / "out"
    images = str(pictures.raw / "imagesTs")
    words = ("-d", "597", "-c", "2d", "-tr", "nnUNetTrainerDualSelfKD", "-p", NAME, "-f", "0", "-device", "cpu")
    pictures.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, "-npp", "1", "-nps", "1")
    assert len(list(out.glob("skin_*.png"))) == 2
