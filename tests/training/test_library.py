"""Networks of libraries through nnU-Net's life cycle, as comparisons and as teachers."""

import json

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main
from nnunet_kd.nnunet.planning import network_in_words, student_plans
from nnunet_kd.trainers.nnUNetTrainerFitNets import nnUNetTrainerFitNets
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import SHORT, make_trainer

SMALL = {
    "monai.UNet": {"channels": [4, 8, 16, 16, 16]},
    "monai.UNETR": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 3, "feature_size": 4},
    "smp.Linknet": {"encoder_name": "resnet18"},
}


def plans_of(workspace, network, name="library", **training):
    """Write the plans of a small network of a library."""
    if network.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs pip install '.[smp]'")
    plans = student_plans(workspace.plans(), 1, name=name, network=network)
    for content in plans["configurations"].values():
        if "architecture" in content:
            content["architecture"]["arch_kwargs"].update(SMALL[network])
    plans["nnunet_kd"]["training"] = {**SHORT, **training}
    (workspace.preprocessed / f"{name}.json").write_text(json.dumps(plans))
    return plans


def test_plan_of_a_network_of_a_library(workspace, capsys):
    assert main(["plan", "-d", "598", "--network", "monai.BasicUNetPlusPlus"]) == 0
    printed = capsys.readouterr().out
    assert "nnUNetv2_train 598 3d_fullres 0 -tr nnUNetTrainerNoKD -p nnUNetPlans_monai_BasicUNetPlusPlus" in printed
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_monai_BasicUNetPlusPlus.json").read_text())
    assert network_in_words(plans["configurations"]["2d"]["architecture"]) == "monai.BasicUNetPlusPlus"


@pytest.mark.parametrize(
    ("kind", "network", "configuration"),
    [
        (nnUNetTrainerNoKD, "monai.UNet", "3d_fullres"),
        pytest.param(nnUNetTrainerNoKD, "monai.UNETR", "3d_fullres", marks=pytest.mark.slow),
        pytest.param(nnUNetTrainerNoKD, "smp.Linknet", "2d", marks=pytest.mark.slow),
        pytest.param(nnUNetTrainer, "monai.UNet", "2d", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_a_library_trains_and_predicts(workspace, kind, network, configuration):
    trainer = make_trainer(kind, plans_of(workspace, network), workspace, configuration=configuration)
    if kind is nnUNetTrainer:
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["train_losses"]).all()
    images, out = str(workspace.raw / "imagesTs"), workspace.root / "out"
    words = ("-d", "598", "-c", configuration, "-f", "0", "-p", "library", "-tr", kind.__name__, "-device", "cpu")
    workspace.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, "-npp", "1", "-nps", "1")
    assert len(list(out.glob("*.nii.gz"))) == 1


def test_it_teaches_by_its_logits_but_not_by_features(workspace):
    teacher = make_trainer(nnUNetTrainer, plans_of(workspace, "monai.UNet"), workspace)
    teacher.num_epochs = teacher.num_iterations_per_epoch = teacher.num_val_iterations_per_epoch = 1
    teacher.run_training()
    block = {"plans": "library"}
    student = {"source_plans": "nnUNetPlans", "reduction": 4}
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 1}, teacher=block, student=student)
    plans["configurations"]["3d_fullres"]["patch_size"] = teacher.configuration_manager.patch_size
    trainer = make_trainer(nnUNetTrainerLogitsKD, plans, workspace)
    trainer.run_training()
    (loss,) = trainer.logger.get_checkpoint()["logits"]
    assert np.isfinite(loss) and loss > 0
    assert isinstance(trainer.distiller.teacher.network, torch.nn.Module)
    with pytest.raises(NotImplementedError, match="the teacher's network, monai.UNet, has no encoder stages whose"):
        make_trainer(nnUNetTrainerFitNets, plans, workspace)


def test_networks_with_one_size_get_that_of_every_configuration(workspace):
    before = workspace.plans()
    before["configurations"]["3d_large"] = {"inherits_from": "3d_fullres", "patch_size": [60, 60, 60]}
    before["configurations"]["3d_same"] = {"inherits_from": "3d_large", "batch_size": 5}
    after = student_plans(before, 1, network="monai.UNETR")["configurations"]
    for name in ("2d", "3d_fullres", "3d_large"):
        arguments = after[name]["architecture"]["arch_kwargs"]
        assert arguments["patch_size"] == after[name]["patch_size"]
        assert all(side % 16 == 0 for side in arguments["patch_size"]) and max(arguments["patch_size"]) > 16
        assert arguments["strides"] == [[step] * len(arguments["patch_size"]) for step in (1, 4, 4)]
    assert after["3d_large"]["patch_size"] == [64, 64, 64] and "architecture" not in after["3d_same"]
    plain = student_plans(before, 1, network="monai.UNet")["configurations"]
    assert "architecture" not in plain["3d_large"]
    assert plain["2d"]["architecture"]["arch_kwargs"]["channels"] == [64, 128, 256, 512, 1024]
    assert plain["3d_fullres"]["architecture"]["arch_kwargs"]["channels"] == [16, 32, 64, 128, 256]
    assert [*student_plans(before, 1, network="smp.MAnet")["configurations"]] == ["2d"]
