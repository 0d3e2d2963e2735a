"""Teachers and students of other families through stock commands: Primus, UNETR and MedNeXt teach, Mobile U-Net learns.

The teachers' trainers are nnU-Net's own with a short schedule, in a folder that nnU-Net searches.
"""

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.cli import main
from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import read_trained
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.runtime.model import Model
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from tests.conftest import SHORT, make_trainer

DEVICE = ("-device", "cpu")
PATCH = [16, 32, 32]  # which Primus, UNETR, MedNeXt and the U-Net of the plans divide
ONCE = {**SHORT, "num_epochs": 1}
TRAINER = """
import torch
from {module} import {parent}

class {name}({parent}):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""
PARENTS = {
    "nnUNetTrainerShort": ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnUNetTrainer"),
    "nnUNetTrainerShortPrimus": (
        "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",
        "nnUNet_Primus_S_Trainer",
    ),
}
SMALL = {
    "monai.UNETR": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 3, "feature_size": 4},
    "monai.MedNeXt": {"init_filters": 4, "blocks_down": [1], "blocks_up": [1]}
    | {"encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2},
}


def trained(workspace, trainer, plans, **variables):
    """Train with nnU-Net's command, and return the checkpoint and the log."""
    workspace.command("nnUNetv2_train", "598", "3d_fullres", "0", "-tr", trainer, "-p", plans, *DEVICE, **variables)
    (fold,) = workspace.results.glob(f"{trainer}__{plans}__3d_fullres/fold_0")
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    return checkpoint, next(fold.glob("training_log*")).read_text()


def plan_teacher(workspace, network=None):
    """Write plans with the common patch and, with a network of MONAI, a small one of it; return their name."""
    plans = workspace.plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = PATCH
    name = "teacher" if network is None else network.replace(".", "_")
    if network is not None:
        plans = student_plans(plans, 1, network=network)
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(SMALL[network])
    (workspace.preprocessed / f"{name}.json").write_text(json.dumps({**plans, "plans_name": name}))
    return name


def plan_student(workspace, trainer, plans):
    """Write plans of a plain student of a quarter of the width, which name its teacher; return their name."""
    block = {"training": ONCE, "teacher": {"trainer": trainer, "plans": plans}, "method": {"ramp": None}}
    content = workspace.plans("student", **block, student={"source_plans": "nnUNetPlans"})
    configuration = content["configurations"]["3d_fullres"]
    configuration["patch_size"] = PATCH
    configuration["architecture"]["arch_kwargs"]["strides"] = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]  # MedNeXt halves axes
    (workspace.preprocessed / "student.json").write_text(json.dumps(content))
    return "student"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "network", "student", "term"),
    [
        ("nnUNetTrainerShortPrimus", None, "nnUNetTrainerLogitsKD", "logits"),
        ("nnUNetTrainerShort", "monai.UNETR", "nnUNetTrainerLogitsKD", "logits"),
        ("nnUNetTrainerShort", "monai.MedNeXt", "nnUNetTrainerDCD", "dcd"),
    ],
)
def test_a_teacher_of_another_family_teaches_a_plain_student(
    workspace, tmp_path, monkeypatch, teacher, network, student, term
):
    """All trainings and the prediction are stock commands; a method that compares features needs a pyramid."""
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    module, parent = PARENTS[teacher]
    (trainers / f"{teacher}.py").write_text(TRAINER.format(module=module, parent=parent, name=teacher))
    search = os.pathsep.join((str(trainers), os.environ["nnUNet_extTrainer"]))
    plans = plan_teacher(workspace, network)
    trained(workspace, teacher, plans, nnUNet_extTrainer=search)
    named = plan_student(workspace, teacher, plans)
    checkpoint, log = trained(workspace, student, named, nnUNet_extTrainer=search)
    (loss,) = checkpoint["logging"][term]
    assert np.isfinite(loss) and loss > 0 and f"distilling {term}" in log
    assert ("encoder stages [2] of the student are not distilled" in log) == (term == "dcd")
    monkeypatch.setenv("nnUNet_extTrainer", search)
    settings = json.loads((workspace.preprocessed / f"{named}.json").read_text())
    if term == "logits":
        with pytest.raises(NotImplementedError, match="has no encoder stages whose features could be distilled"):
            make_trainer(nnUNetTrainerDCD, settings, workspace)
    settings["plans_name"] = "other"  # a training that has not begun
    settings["configurations"]["3d_fullres"]["patch_size"] = [16, 21, 24]
    with pytest.raises(ValueError, match=r"\[16, 21, 24\]( cannot be divided by|: give the student's plans)"):
        make_trainer(nnUNetTrainerDCD if term == "dcd" else nnUNetTrainerLogitsKD, settings, workspace)
    out, words = workspace.root / "out", ("-d", "598", "-c", "3d_fullres", "-f", "0", "-p", named, "-tr", student)
    images = str(workspace.raw / "imagesTs")
    workspace.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, *DEVICE, "-npp", "1", "-nps", "1")
    assert len(list(out.glob("*.nii.gz"))) == 1


@pytest.fixture
def mobile_plans(workspace):
    """Plans of a Mobile U-Net with the default teacher, written by the command."""
    assert main(["plan", "-d", "598", "--network", "mobile_unet"]) == 0
    path = workspace.preprocessed / "nnUNetPlans_mobile_unet_r4.json"
    plans = json.loads(path.read_text())
    plans["nnunet_kd"] |= {"training": ONCE, "teacher": {"plans": "nnUNetPlans"}, "method": {"ramp": None}}
    path.write_text(json.dumps(plans))
    return plans


def test_a_mobile_u_net_is_planned_but_not_started_from_another_network(workspace, mobile_plans, capsys):
    assert main(["plan", "-d", "598", "--network", "mobile_unet", "--force"]) == 0
    printed = capsys.readouterr().out
    assert "nnUNetv2_train 598 3d_fullres 0 -tr nnUNetTrainerDCD -p nnUNetPlans_mobile_unet_r4" in printed
    widths = [
        mobile_plans["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"]
        for name in ("2d", "3d_fullres")
    ]
    source = workspace.plans()["configurations"]
    assert widths == [
        [max(8, width // 4) for width in source[name]["architecture"]["arch_kwargs"]["features_per_stage"]]
        for name in ("2d", "3d_fullres")
    ]
    plans = {**mobile_plans, "nnunet_kd": {**mobile_plans["nnunet_kd"], "method": {}}}
    with pytest.raises(ValueError, match=r"^nnunet_kd.training.initial_weights: the student has other layers [^\n]*$"):
        make_trainer(nnUNetTrainerKD, plans, workspace)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_a_mobile_u_net_is_trained_predicts_and_is_exported(workspace, tmp_path, mobile_plans, configuration):
    name = mobile_plans["plans_name"]
    words = ("-p", name, "-tr", "nnUNetTrainerDCD")
    workspace.command("nnUNetv2_train", "598", configuration, "0", *words, *DEVICE)
    results = workspace.results / f"nnUNetTrainerDCD__{name}__{configuration}"
    checkpoint = torch.load(results / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["logging"]["dcd"][0] > 0
    images, out = str(workspace.raw / "imagesTs"), workspace.root / "out"
    words = ("-d", "598", "-c", configuration, "-f", "0", *words)
    workspace.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, *DEVICE, "-npp", "1", "-nps", "1")
    assert len(list(out.glob("*.nii.gz"))) == 1
    made = export_onnx(read_trained(results, ["0"]), tmp_path / "model")
    assert made.multiples is not None and made.difference < 1e-4
    assert main(["predict", "-m", str(tmp_path / "model"), "-i", images, "-o", str(tmp_path / "found")]) == 0
    (theirs,), (ours,) = (
        [sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in folder.glob("*.nii.gz")]
        for folder in (out, tmp_path / "found")
    )
    assert (theirs == ours).mean() > 0.99
    data = np.random.default_rng(0).normal(size=(3, 3, 30, 30)).astype(np.float32)
    assert np.isfinite(Model(tmp_path / "model", threads=1).logits(data)).all()
