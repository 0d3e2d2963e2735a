"""VM-UNet through nnU-Net's life cycle, with and without dual self-distillation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import make_trainer, stop_within
from tests.vm_unet_plans import NAME, plans_for
from tests.vmamba_weights import vmamba_state


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


def test_it_starts_from_vmamba(workspace, tmp_path):
    state = vmamba_state((8, 16, 32, 64), (2, 1, 1, 1))
    torch.save(state, tmp_path / "vmamba.pth")
    start = {"initial_weights": {"vmamba": str(tmp_path / "vmamba.pth")}, "save_every": 1}
    trainer = make_trainer(nnUNetTrainerDualSelfKD, plans_for(workspace, start), workspace, configuration="2d")
    trainer.initialize()
    stage = trainer.trained().student.encoder.stages[2][1]
    assert torch.equal(stage.norm.weight, state["layers.2.blocks.0.ln_1.weight"])
    stop_within(trainer, 3)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*"))
    assert "initial weights: those of VMamba in" in log and "vmamba.pth for encoder and decoder blocks" in log

    (tmp_path / "vmamba.pth").unlink()  # a training that resumes does not need it
    resumed = make_trainer(
        nnUNetTrainerDualSelfKD, plans_for(workspace, start), workspace, configuration="2d", resume=True
    )
    maybe_load_checkpoint(resumed, True, False)
    assert not torch.equal(
        resumed.trained().student.encoder.stages[2][1].norm.weight, state["layers.2.blocks.0.ln_1.weight"]
    )


@pytest.mark.parametrize(
    ("start", "network", "message"),
    [
        ({"vmamba": "missing.pth"}, "vm_unet", "there are no weights of VMamba in missing.pth"),
        ({"vmamba": "missing.pth"}, None, "VMamba's weights fit VM-UNet, but the plans name PlainConvUNet"),
        ({"mamba": "FILE"}, "vm_unet", 'initial_weights must be "teacher", .*, {"vmamba": FILE} or null, got'),
    ],
)
def test_a_start_from_vmamba_that_cannot_be(workspace, start, network, message):
    training = {"initial_weights": start}
    plans = workspace.plans("nnUNetPlans", training=training) if network is None else plans_for(workspace, training)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_trainer(nnUNetTrainerNoKD, plans, workspace, configuration="2d")


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
