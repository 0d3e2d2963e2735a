"""Teachers whose network cannot be made narrower: the student has nnU-Net's own network and random initial weights."""

import json
import shutil

import pytest
import torch

from nnunet_kd.cli import main
from nnunet_kd.nnunet.default_network import default_network
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.workflow.plans import Student, plans_of_student

PRIMUS = "nnUNet_Primus_S_Trainer"
SHORT = ["--epochs", "2", "--iterations", "2", "--disable_tta", "-np", "1", "-device", "cpu"]


@pytest.fixture
def primus(workspace):
    """Results folder of nnU-Net's transformer, which its trainer builds whatever network the plans name."""
    plans = json.loads((workspace.teacher / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]  # it needs multiples of 8
    folder = workspace.results / f"{PRIMUS}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(workspace.teacher / "dataset.json", folder)
    torch.manual_seed(0)
    network = build_network(find_trainer(PRIMUS), Experiment(plans, "3d_fullres", workspace.dataset_json))
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": PRIMUS,
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder, sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
def test_a_transformer_teaches_a_u_net(workspace, primus, tmp_path, capsys, forked_commands):
    folder, parameters = primus
    images = shutil.copytree(workspace.raw / "imagesTr", workspace.root / "images")
    out = tmp_path / "out"
    assert main(["distill", "-m", str(folder), "-i", str(images), "-o", str(out), *SHORT]) == 0
    because = "random, because the student has other layers than the teacher: only the student has decoder"
    assert f"initial weights: {because}" in capsys.readouterr().out
    results = next((out / "nnUNet_results").rglob("fold_0"))
    assert "initial weights: random, as nnunet_kd" in next(results.glob("training_log*")).read_text()
    assert f"Initial weights: {because}" in (out / "report.html").read_text()
    plans = json.loads((results.parent / "plans.json").read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]
    assert network["network_class_name"].endswith("PlainConvUNet")
    assert plans["nnunet_kd"]["teacher"]["folder"] == str(folder)
    cost = json.loads((out / "metrics.json").read_text())["cost"]
    assert cost["teacher"]["parameters"] == parameters > cost["student"]["parameters"]
    assert (out / "student.zip").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"network_class_name": "mednextv1.MedNeXt", "arch_kwargs": {"n_channels": 32}}},
        {"patch_size": [13, 22, 18]},  # which the U-Net of the plans cannot divide
    ],
)
def test_the_student_of_a_foreign_network_is_nnunets_default(workspace, change):
    teacher = Experiment.of_results(workspace.teacher)
    configuration = teacher.plans["configurations"]["3d_fullres"]
    configuration.update({"architecture": configuration["architecture"], **change})
    configuration["architecture"].setdefault("_kw_requires_import", [])
    student = Student(reduction=4)
    plans = plans_of_student(teacher, "Dataset001_X", "NibabelIO", student, workspace.teacher, 0, {}, {})
    found = plans["configurations"]["3d_fullres"]
    architecture, patch = default_network(configuration["spacing"], configuration["patch_size"])
    widths = [max(8, width // 4) for width in architecture["arch_kwargs"].pop("features_per_stage")]
    assert found["architecture"]["arch_kwargs"].pop("features_per_stage") == widths
    assert found["architecture"] == architecture and found["patch_size"] == patch
    assert all(side >= given for side, given in zip(patch, configuration["patch_size"], strict=True))


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_the_default_network_is_that_of_nnunets_planner(workspace, configuration):
    planned = workspace.plans()["configurations"][configuration]
    architecture, patch = default_network(planned["spacing"], planned["patch_size"])
    assert patch == planned["patch_size"]
    assert json.loads(json.dumps(architecture)) == planned["architecture"]
