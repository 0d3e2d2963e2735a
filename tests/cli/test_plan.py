import json
import re
import shutil

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main
from nnunet_kd.cli.dataset_folder import no_plans
from tests.conftest import make_trainer


def test_plan_writes_a_student_nnunet_can_train(workspace, capsys):
    assert main(["plan", "-d", "598", "-r", "4"]) == 0
    printed = capsys.readouterr().out
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_r4.json").read_text())
    assert plans["plans_name"] == "nnUNetPlans_r4"
    assert "parameters (M)" in printed and "activations per patch (MiB)" in printed
    assert "nnUNetv2_train 598 3d_fullres 0 -tr nnUNetTrainerKD -p nnUNetPlans_r4" in printed
    ratio = float(
        next(line for line in printed.splitlines() if "3d_fullres" in line and "parameters" in line).split()[-1]
    )
    assert 10 < ratio < 17


def test_plan_keeps_a_smallest_width(workspace):
    whole = workspace.plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    for least in (2, 20):
        assert main(["plan", "-d", "598", "-r", "16", "--min-features", str(least), "-o", f"least_{least}"]) == 0
        plans = json.loads((workspace.preprocessed / f"least_{least}.json").read_text())
        widths = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
        assert widths == [max(width // 16, least) for width in whole] and least in widths


@pytest.mark.slow
def test_plan_of_another_network_that_stock_nnunet_trains_and_predicts(workspace, capsys):
    """nnU-Net's own trainer trains DRA-UNet in 3-D and 2-D, because the plans name it."""
    assert main(["plan", "-d", "598", "--network", "dra_unet"]) == 0
    assert "wrote" in capsys.readouterr().out
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_dra_unet_r4.json").read_text())
    for configuration in ("3d_fullres", "2d"):
        architecture = plans["configurations"][configuration]["architecture"]
        before = workspace.plans()["configurations"][configuration]["architecture"]["arch_kwargs"]
        assert architecture["network_class_name"] == "nnunet_kd.networks.dra_unet.DRAUNet"
        assert architecture["arch_kwargs"]["strides"] == before["strides"]
        trainer = make_trainer(nnUNetTrainer, plans, workspace, configuration=configuration)
        trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
        trainer.num_iterations_per_epoch = 2
        trainer.run_training()
        words = ("-d", "598", "-c", configuration, "-f", "0", "-p", "nnUNetPlans_dra_unet_r4", "-device", "cpu")
        images, out = str(workspace.raw / "imagesTs"), workspace.root / f"out_{configuration}"
        workspace.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words, "-npp", "1", "-nps", "1")
        assert len(list(out.glob("*.nii.gz"))) == 1


def test_plan_of_the_network_of_a_paper_is_complete(workspace, capsys):
    """nnU-Net builds the network from the plans, with the paper's size whatever the slices of the data set are."""
    assert main(["plan", "-d", "598", "--network", "dra_unet", "--paper"]) == 0
    assert "nnUNetv2_train 598 2d 0 -tr nnUNetTrainerDCD -p nnUNetPlans_dra_unet_paper" in capsys.readouterr().out
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_dra_unet_paper.json").read_text())
    trainer = make_trainer(nnUNetTrainer, plans, workspace, configuration="2d")
    trainer.initialize()
    widths = [stage[-1].second[0].out_channels for stage in trainer.network.encoder.stages]
    assert widths == [64, 128, 256, 512, 1024] and trainer.configuration_manager.patch_size == [256, 256]


def test_plan_by_hand(workspace):
    stages = len(workspace.plans()["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"])
    widths = [str(4 + i) for i in range(stages)]
    assert main(["plan", "-d", "Dataset598_TinyHeads", "-c", "2d", "--widths", *widths, "-o", "mine"]) == 0
    plans = json.loads((workspace.preprocessed / "mine.json").read_text())
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [
        int(w) for w in widths
    ]


def test_plan_of_a_data_set_of_slices(workspace, capsys):
    plans = workspace.plans("slices")
    plans["configurations"] = {"2d": plans["configurations"]["2d"]}
    (workspace.preprocessed / "slices.json").write_text(json.dumps(plans))
    assert main(["plan", "-d", "598", "-p", "slices"]) == 0
    assert "train it: nnUNetv2_train 598 2d 0 -tr nnUNetTrainerKD -p slices_r4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-d", "598", "-o", "nnUNetPlans"], "the student's plans need a name of their own"),
        (["-d", "598", "-p", "other"], "no plans .*other.json. Fix: choose one of .*nnUNetPlans.* with -p$"),
        (["-d", "598", "-c", "3d"], "the student's plans have no configuration 3d: choose one of 2d, 3d_fullres with"),
        (["-d", "598", "--network", "vm_unet", "-c", "3d_fullres"], "no configuration 3d_fullres: choose one of 2d wi"),
        (["-d", "598", "-o", "sub/plans"], "the name of plans can have letters, digits, .* only, got 'sub/plans'"),
        (["-d", "598", "-r", "inf"], "student.reduction must be finite, got inf"),
        (["-d", "Dataset"], "give a data set by its number or its name, such as 501 or .*, got 'Dataset'"),
        (["-d", "597"], "nnU-Net knows no data set 597"),
        (["-d", "heads"], "give a data set by its number or its name, such as 501 or .*, got 'heads'"),
        (["-d", "598", "--widths", "8", "9"], "configuration 3d_fullres has . stages, got 2 widths"),
        (["-d", "598", "-r", "0"], "student.reduction must be at least 1, got 0"),
        (["-d", "598", "--paper"], "--paper needs a network: name it with --network"),
        (["-d", "598", "--network", "kd_sam", "--paper"], "size of its paper without --paper, which is for dra_unet, "),
    ],
)
def test_plan_refuses_in_one_line_and_writes_nothing(workspace, capsys, words, message):
    before = sorted(workspace.preprocessed.iterdir())
    assert main(["plan", *words]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error)
    assert sorted(workspace.preprocessed.iterdir()) == before


def test_plan_of_a_network_without_the_stages_of_another(workspace, capsys):
    assert main(["plan", "-d", "598", "--network", "vm_unet"]) == 0
    assert main(["plan", "-d", "598", "-p", "nnUNetPlans_vm_unet", "--network", "dra_unet"]) == 1
    error = capsys.readouterr().err
    assert "VMUNet of the plans has no n_stages, kernel_sizes, which DRAUNet needs" in error


@pytest.mark.parametrize(
    ("plans", "command"),
    [
        ("nnUNetPlans_r8", "nnunet_kd plan -d 598 -r 8"),
        ("nnUNetPlans_kd_sam", "nnunet_kd plan -d 598 --network kd_sam"),
        ("nnUNetPlans_dra_unet_r2.5", "nnunet_kd plan -d 598 --network dra_unet -r 2.5"),
        ("nnUNetPlans_dra_unet", "choose one of mine, nnUNetPlans with -p"),  # no command makes these
        ("nnUNetPlans_dra_unet_paper", "nnunet_kd plan -d 598 --network dra_unet --paper"),
        ("nnUNetPlans_dra_unet_paper_r4", "nnunet_kd plan -d 598 --network dra_unet -r 4 --paper"),
        ("nnUNetPlans_monai_SwinUNETR", "nnunet_kd plan -d 598 --network monai.SwinUNETR"),
        ("nnUNetPlans_kd_sam_paper", "choose one of mine, nnUNetPlans with -p"),
        ("nnUNetPlans_kd_sam_r4", "choose one of mine, nnUNetPlans with -p"),
        ("mine_r8", "nnunet_kd plan -d 598 -p mine -r 8"),
        ("nnUNetResEncUNetLPlans", "nnUNetv2_plan_and_preprocess -d 598 -pl nnUNetPlannerResEncL"),
        ("nnUNetResEncUNetPlans", "nnUNetv2_plan_and_preprocess -d 598 -pl ResEncUNetPlanner"),
        ("other", "choose one of mine, nnUNetPlans with -p"),
    ],
)
def test_missing_plans_name_the_command_that_makes_them(workspace, tmp_path, plans, command):
    folder = tmp_path / workspace.preprocessed.name
    folder.mkdir()
    for name in ("nnUNetPlans", "mine"):
        shutil.copy(workspace.preprocessed / "nnUNetPlans.json", folder / f"{name}.json")
    shutil.copy(workspace.preprocessed / "dataset.json", folder)
    assert no_plans(folder / f"{plans}.json") == f"there are no plans {folder}/{plans}.json. Fix: {command}"


def test_a_data_set_without_plans(workspace, tmp_path):
    folder = tmp_path / workspace.preprocessed.name
    folder.mkdir()
    for plans in ("nnUNetPlans", "nnUNetPlans_r8"):  # planning takes no name of a data set
        assert no_plans(folder / f"{plans}.json").endswith("Fix: nnUNetv2_plan_and_preprocess -d 598")


@pytest.mark.parametrize("name", ["dataset", "splits_final"])
def test_plan_replaces_nothing_but_plans(workspace, capsys, name):
    path = workspace.preprocessed / f"{name}.json"
    if not path.exists():
        path.write_text("[]")
    before = path.read_text()
    assert main(["plan", "-d", "598", "-o", name, "--force"]) == 1
    assert f"{name}.json exists and holds no plans: choose another name with -o" in capsys.readouterr().err
    assert path.read_text() == before


def _stages(plans):
    return plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]


BAD_PLANS = {
    "block": (lambda plans: plans.update(nnunet_kd=[]), "nnUNetPlans.json: "),
    "section": (lambda plans: plans.update(nnunet_kd={"trainin": {}}), "nnUNetPlans.json: .*trainin"),
    "widths": (lambda plans: _stages(plans).update(features_per_stage=None), "contains plans that nnU-Net cannot use"),
    "strides": (lambda plans: _stages(plans).pop("strides"), "contains plans that nnU-Net cannot use"),
}


@pytest.mark.parametrize("what", BAD_PLANS)
def test_files_that_are_not_plans_give_one_line(workspace, capsys, what):
    change, message = BAD_PLANS[what]
    path = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    change(plans)
    path.write_text(json.dumps(plans))
    assert main(["plan", "-d", "598"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not (workspace.preprocessed / "nnUNetPlans_r4.json").exists()
    assert main(["doctor", "-d", "598", "-c", "3d_fullres", "-f", "0"]) == 1


def test_plans_that_inherit_from_each_other_do_not_recurse(workspace, capsys):
    path = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"] |= {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
    path.write_text(json.dumps(plans))
    main(["plan", "-d", "598", "--network", "kd_sam", "--trust"])
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_plan_replaces_only_when_forced(workspace, capsys):
    assert main(["plan", "-d", "598"]) == 0
    assert main(["plan", "-d", "598"]) == 1
    assert "exists: choose another name with -o, or replace it with --force" in capsys.readouterr().err
    assert main(["plan", "-d", "598", "--force"]) == 0
