"""BrainSegDMIF through nnU-Net's life cycle, and as a teacher without prompts."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.cli import main
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.losses.focal_dice import FocalDiceLoss
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.training.brainseg_dmif import FocalDiceOfTargets
from tests.conftest import SHORT, make_trainer, stop_within
from tests.small_networks import tiny_sam
from tests.training import variants
from tests.training.small_brainseg_dmif import NAME, plans_for


def trainer_for(workspace, plans, **options):
    return make_trainer(nnUNetTrainerBrainSegDMIF, plans, workspace, configuration="2d", **options)


def test_schedule_and_loss_are_the_papers(workspace):
    plans = plans_for(workspace)
    del plans["nnunet_kd"]["training"]
    trainer = trainer_for(workspace, plans)
    trainer.initialize()
    assert trainer.num_epochs == 200 and isinstance(trainer.optimizer, torch.optim.Adam)
    rates = []
    for epoch in (0, 6, 7, 11, 12, 199):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    assert float(trainer.loss(logits, target)) == float(FocalDiceLoss()(logits, target))


def test_settings_come_from_the_plans(workspace):
    method = {"milestones": [1, 3], "factor": 0.1, "gamma": 1.0, "alpha": 0.3, "batch_dice": True}
    trainer = trainer_for(workspace, plans_for(workspace, method=method))
    trainer.initialize()
    rates = []
    for epoch in range(4):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [1e-4, 1e-5, 1e-5, 1e-6])
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    given = {"gamma": 1.0, "alpha": 0.3, "batch_dice": True}
    value = float(trainer.loss(logits, target))
    assert value == float(FocalDiceLoss(**given)(logits, target))
    for key in given:
        others = {name: number for name, number in given.items() if name != key}
        assert value != float(FocalDiceLoss(**others)(logits, target))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_the_loss_reads_nnunets_targets(regions, ignore):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = {"background": 0, "a": [1, 2], "b": 2} if regions else {"background": 0, "a": 1, "b": 2}
    manager = LabelManager({**labels, **({"ignore": 3} if ignore else {})}, [1, 2] if regions else None)
    loss = FocalDiceOfTargets(FocalDiceLoss(), LabelCodes(manager))
    truth = torch.randint(0, 4 if ignore else 3, (2, 1, 6, 6))
    logits = torch.randn(2, 2 if regions else 3, 6, 6)
    valid = truth != 3
    as_regions = torch.cat((((truth == 1) | (truth == 2)), truth == 2), 1)
    if regions:
        given = torch.cat((as_regions, truth == 3), 1) if ignore else as_regions
        expected = FocalDiceLoss()(logits, as_regions, True, valid)
    else:
        given, expected = truth, FocalDiceLoss()(logits, truth, False, valid)
    torch.testing.assert_close(loss(logits, given), expected)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"dmif": False},
        {"prompt_generator": False},
        {"upsampling_decoder": False},
        {"dmif": False, "prompt_generator": False, "upsampling_decoder": False},
        {"modalities": [1, 2]},
        {"activation_checkpointing": True},
    ],
    ids=lambda network: ",".join(network) or "whole",
)
def test_every_row_of_the_ablations_is_a_setting_of_the_plans(workspace, network):
    trainer = trainer_for(workspace, plans_for(workspace, {"num_epochs": 1}, **network))
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["train_losses"]).all()
    encoders = len(trainer.trained().student.encoder.encoders)
    assert encoders == len(network.get("modalities", (0, 1, 2)))


def test_a_resumed_training_equals_an_undisturbed_one(workspace):
    plans = plans_for(workspace, {"num_epochs": 3}, {"milestones": [1, 2]})
    whole = trainer_for(workspace, plans)
    whole.run_training()
    folder = workspace.results / f"nnUNetTrainerBrainSegDMIF__{NAME}__2d" / "fold_0"
    shutil.rmtree(folder)
    stopped = trainer_for(workspace, plans)
    stop_within(stopped, 3)
    resumed = trainer_for(workspace, plans, resume=True)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    resumed.run_training()
    logged, expected = resumed.logger.get_checkpoint(), whole.logger.get_checkpoint()
    for name in ("train_losses", "val_losses", "lrs"):
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-6)
    np.testing.assert_allclose(logged["lrs"], [1e-4, 5e-5, 2.5e-5])


def test_encoders_start_from_sam(workspace, monkeypatch):
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", tiny_sam)
    torch.manual_seed(0)
    sam = tiny_sam()
    torch.save(sam.state_dict(), workspace.root / "sam.pth")
    like_sam = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "global_attention": [1]}
    method = {"checkpoint": str(workspace.root / "sam.pth"), "model_type": "tiny"}
    trainer = trainer_for(workspace, plans_for(workspace, method=method, **like_sam))
    trainer.initialize()
    for encoder in trainer.trained().student.encoder.encoders:
        weight = encoder.blocks[0].mlp.lin1.weight
        assert torch.equal(weight, sam.image_encoder.blocks[0].mlp.lin1.weight)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"milestones": [12, 7]}, "method.milestones must be ascending epochs, got"),
        ({"factor": 0}, "method.factor must be above 0"),
        ({"alpha": 1.0}, "method.alpha must be between 0 and 1"),
        ({"gama": 2}, "did you mean 'gamma'?"),
    ],
)
def test_invalid_settings(workspace, method, words):
    with pytest.raises(ValueError, match=words):
        trainer_for(workspace, plans_for(workspace, method=method))


def test_missing_weights_and_other_networks(workspace):
    with pytest.raises(ValueError, match="training.optimizer: nnUNetTrainerBrainSegDMIF has its own"):
        trainer_for(workspace, plans_for(workspace, {"optimizer": "adamw"}))
    with pytest.raises(FileNotFoundError, match="method.checkpoint: SAM's weights are missing at /none"):
        trainer_for(workspace, plans_for(workspace, method={"checkpoint": "/none"}))
    plans = workspace.plans("unet", student={"source_plans": "nnUNetPlans"})
    with pytest.raises(ValueError, match="trains BrainSegDMIF, but the plans name PlainConvUNet: make plans with"):
        trainer_for(workspace, plans).initialize()


@pytest.mark.parametrize("variant", [variants.use_regions, variants.use_ignore_label])
def test_regions_and_ignored_voxels(workspace, variant):
    variant(workspace)
    trainer = trainer_for(workspace, plans_for(workspace, {"num_epochs": 1}))
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["train_losses"]).all()


@pytest.mark.slow
def test_four_modalities_through_stock_commands_and_on_to_a_student(modalities, tmp_path, capsys):
    """Train, predict, and then teach nnUNetTrainerSAMKD without prompts."""
    schedule = {"num_epochs": 2, "num_iterations_per_epoch": 30, "num_val_iterations_per_epoch": 1, "initial_lr": 2e-3}
    plans_for(modalities, schedule, {"milestones": [1]})
    options = ("596", "2d", "0", "-tr", "nnUNetTrainerBrainSegDMIF", "-p", NAME, "-device", "cpu")
    modalities.command("nnUNetv2_train", *options)
    out = tmp_path / "out"
    words = ("-d", "596", "-c", "2d", "-tr", "nnUNetTrainerBrainSegDMIF", "-p", NAME, "-f", "0", "-device", "cpu")
    images = str(modalities.raw / "imagesTs")
    modalities.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, "-npp", "1", "-nps", "1")
    scores = []
    for path in sorted(out.glob("brain_*.nii.gz")):
        found, truth = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            for file in (path, modalities.raw / "labelsTs" / path.name)
        )
        scores += [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2)]
    (modalities.root / "dice.txt").write_text(f"{np.mean(scores):.4f}")
    assert len(scores) == 8 and np.mean(scores) >= 0.7

    block = {
        "student": {"source_plans": "nnUNetPlans", "reduction": 4},
        "teacher": {"trainer": "nnUNetTrainerBrainSegDMIF", "plans": NAME},
        "training": {**SHORT, "num_iterations_per_epoch": 10},
    }
    plans = student_plans(json.loads((modalities.preprocessed / "nnUNetPlans.json").read_text()), name="student")
    plans["nnunet_kd"] = block
    (modalities.preprocessed / "student.json").write_text(json.dumps(plans))
    given = ("-d", "596", "-c", "2d", "-p", "student", "--teacher", "-f", "0", "--name", "dmif", "--disable_tta")
    assert main(["soft-labels", *given, "-device", "cpu"]) == 0
    assert "10 of 10 cases" in capsys.readouterr().out
    modalities.command(
        "nnUNetv2_train", "596", "2d", "0", "-tr", "nnUNetTrainerSAMKD", "-p", "student", "-device", "cpu"
    )
    folder = modalities.results / "nnUNetTrainerSAMKD__student__2d" / "fold_0"
    terms = torch.load(folder / "checkpoint_final.pth", weights_only=False)["logging"]["soft_labels"]
    assert 0 < terms[1] < terms[0]
