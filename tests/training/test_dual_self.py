"""Self-distillation, which needs no teacher and can be combined with terms that do."""

import shutil

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from tests.conftest import SHORT, make_trainer, stop_within

RESENC = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def use_residual_encoder(plans):
    """Use nnU-Net's ResEnc architecture instead of the plain one in every configuration."""
    for content in plans["configurations"].values():
        if "architecture" not in content:
            continue
        content["architecture"]["network_class_name"] = RESENC
        arguments = content["architecture"]["arch_kwargs"]
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("network", ["plain", "resenc"])
@pytest.mark.parametrize("reduction", [None, 4])
def test_trains_without_any_teacher_at_the_width_of_the_plans(workspace, network, configuration, reduction):
    shutil.rmtree(workspace.results)
    plans = workspace.plans("nnUNetPlans")
    if network == "resenc":
        use_residual_encoder(plans)
    widths = plans["configurations"][configuration]["architecture"]["arch_kwargs"]["features_per_stage"]
    if reduction is not None:
        plans = student_plans(plans, reduction, 4, name="small")
        widths = [max(width // reduction, 4) for width in widths]
    plans.setdefault("nnunet_kd", {})["training"] = SHORT
    trainer = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace, configuration=configuration)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    np.testing.assert_allclose(
        logged["train_losses"], np.add(logged["segmentation"], 0.1 * np.array(logged["dual_self"])), rtol=1e-5
    )
    assert trainer.distiller.teacher is None
    assert list(trainer.trained().student.encoder.output_channels) == widths
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    assert checkpoint["network_weights"].keys() == trainer.trained().student.state_dict().keys()
    (folder,) = workspace.results.iterdir()
    log = next(iter(folder.glob("fold_0/training_log*"))).read_text()
    assert "distilling dual_self: weight 0.1, DualSelfLoss(alpha=1, beta=0.5)" in log
    assert "leakage" not in (folder / "plans.json").read_text()


@pytest.mark.parametrize("projection", ["learned", pytest.param("frozen", marks=pytest.mark.slow)])
def test_a_learned_resizing_trains_with_the_student_and_resumes(workspace, projection):
    method = {"resizing": "learned", "projection": projection}
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=method)
    trainer = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace)
    trainer.initialize()
    before = {name: value.clone() for name, value in trainer.trained().adapters.state_dict().items()}
    matrices = [name for name in before if "resizing" in name]
    levels = len(trainer.trained().student.encoder.output_channels)
    assert len(matrices) == 3 * (2 * levels - 2)
    stop_within(trainer, 3)
    after = trainer.trained().adapters.state_dict()
    assert all(torch.equal(before[name], after[name]) == (projection == "frozen") for name in matrices)
    resumed = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace, resume=True)
    maybe_load_checkpoint(resumed, True, False)
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)["nnunet_kd"]["adapters"]
    for name, value in resumed.trained().adapters.state_dict().items():
        assert torch.equal(value, saved[name])


def test_the_loss_falls(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"weight": 1.0})
    trainer = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace)
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    values = [float(trainer.train_step(batch)["dual_self"]) for _ in range(12)]
    assert values[-1] < 0.8 * values[0]


def test_combines_with_a_term_that_needs_a_teacher(workspace):
    terms = [{"name": "dual_self", "beta": 0}, {"name": "dcd", "ramp": [1, 0]}]
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    passes = []
    trainer.distiller.teacher.register_forward_hook(lambda *_: passes.append(1))
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["dual_self"]).all() and np.isfinite(logged["dcd"]).tolist() == [False, True]
    assert len(passes) == 3  # only after the term that needs it has begun, when its share is measured too
    adapters = trainer.trained().adapters
    assert len(adapters["dual_self"].encoder_steps) == 0 and len(adapters["dcd"]) > 0


def test_resumes_exactly(workspace):
    """Stop after the first of two epochs and resume, with adapters and optimizer."""
    whole = make_trainer(nnUNetTrainerDualSelfKD, workspace.plans("whole", training=SHORT), workspace)
    whole.run_training()
    plans = workspace.plans("parted", training=SHORT)
    first = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace)
    first.num_epochs = 1
    first.on_train_start()
    first.on_epoch_start()
    first.on_train_epoch_start()
    first.on_train_epoch_end([first.train_step(next(first.dataloader_train)) for _ in range(2)])
    with torch.no_grad():
        first.on_validation_epoch_start()
        first.on_validation_epoch_end([first.validation_step(next(first.dataloader_val))])
    first.on_epoch_end()
    second = make_trainer(nnUNetTrainerDualSelfKD, plans, workspace, resume=True)
    second.initialize()
    second.load_checkpoint(f"{first.output_folder}/checkpoint_best.pth")
    assert second.current_epoch == 1
    second.run_training()
    for (name, expected), (_, ours) in zip(
        whole.trained().named_parameters(), second.trained().named_parameters(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_features(workspace):
    """nnU-Net compiles networks on CUDA."""
    trainer = make_trainer(nnUNetTrainerDualSelfKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    trainer.initialize()
    trainer.network.train()
    images = torch.randn(2, 3, *trainer.configuration_manager.patch_size)
    compiled = torch.compile(trainer.network, backend="aot_eager")
    for _ in range(2):
        for expected, ours in zip(trainer.network(images), compiled(images), strict=True):
            torch.testing.assert_close(list(ours), list(expected), rtol=1e-4, atol=1e-4)
