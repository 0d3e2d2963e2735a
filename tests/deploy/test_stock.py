"""A student is exported as a model of stock nnU-Net."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.cli import main
from nnunet_kd.deploy.stock import export_stock, install_stock
from nnunet_kd.deploy.trained import provenance, read_trained
from nnunet_kd.nnunet.settings import with_leakage
from tests.commands import printed_command
from tests.conftest import DATASET
from tests.students import results

# Simulates a machine without this package: it cannot be imported, and nnU-Net does not know its trainers. Both commands
# run in one process and fork theirs, since each would import nnU-Net again.
WITHOUT_US = """
import json
import multiprocessing
import sys
sys.modules["nnunet_kd"] = None
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point
from tests.killing import fork_from_here
fork_from_here()
multiprocessing.cpu_count = lambda: 1  # nnU-Net uses it as the number of threads
for entry, words in zip((install_from_zip_entry_point, predict_entry_point), json.loads(sys.argv[1])):
    sys.argv = ["nnunetv2", *words]
    entry()
"""


def install_and_predict(students, scratch, *commands):
    """Run two of nnU-Net's commands, given their words, without this package."""
    root = str(Path(__file__).parents[2])
    environment = {**students.environment(), "nnUNet_results": str(scratch / "results"), "nnUNet_extTrainer": ""}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, json.dumps(commands)],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_installed_and_predicted_without_this_package(students, tmp_path, capsys, monkeypatch):
    """The segmentations equal those of the student, bit by bit."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(students.root / name))
    path = tmp_path / "student.zip"
    words = ("-d", "598", "-tr", "nnUNetTrainerDCD", "-o", str(path), "--licence", "CC BY 4.0")
    assert main(["export", "nnunet", *words]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "results").mkdir()
    installing = printed_command(printed, "nnUNetv2_install_pretrained_model_from_zip")
    assert installing[1:] == [path.name]
    model = tmp_path / "results" / DATASET / "nnUNetTrainer__nnUNetPlans_DCD__3d_fullres"
    images, out, options = (
        str(students.raw / "imagesTs"),
        tmp_path / "out",
        ("-device", "cpu", "-npp", "1", "-nps", "1"),
    )
    words = ("-i", images, "-d", "598", "-c", "3d_fullres", "-f", "0", *options)
    predicting = (*printed_command(printed, "nnUNetv2_predict", IN=images, OUT=out)[1:], *options)
    install_and_predict(students, tmp_path, [str(path)], [*predicting, "--save_probabilities"])
    before = tmp_path / "before"
    students.command("nnUNetv2_predict", *words, "-tr", "nnUNetTrainerDCD", "--save_probabilities", "-o", str(before))
    (case,) = (file.name for file in before.glob("*.nii.gz"))
    pair = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / case))) for folder in (before, out)]
    np.testing.assert_array_equal(*pair)
    probabilities = [np.load(folder / case.replace(".nii.gz", ".npz"))["probabilities"] for folder in (before, out)]
    np.testing.assert_array_equal(*probabilities)

    provenance = json.loads((model / "provenance.json").read_text())
    assert provenance["licence"] == "CC BY 4.0" and provenance["trainer"] == "nnUNetTrainerDCD"
    assert provenance["teacher"][0]["trainer"] == "nnUNetTrainer" and "dcd: weight 0.01" in provenance["method"][0]
    assert provenance["versions"]["nnunetv2"] and len(provenance["checkpoint_sha256"]["0"]) == 64
    summary = json.loads((results(students, "DCD") / "fold_0" / "validation" / "summary.json").read_text())
    assert provenance["validation"]["0"]["mean Dice"] == summary["foreground_mean"]["Dice"]
    network = read_trained(results(students, "DCD"), ["0"]).network("0")
    assert provenance["parameters"] == sum(p.numel() for p in network.parameters())
    assert json.loads((model / "plans.json").read_text())["plans_name"] == "nnUNetPlans_DCD"


def test_another_checkpoint(students, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(students.root / name))
    first = results(students) / "fold_0"
    other = torch.load(results(students) / "fold_1" / "checkpoint_final.pth", weights_only=False)
    torch.save(other, first / "checkpoint_other.pth")
    words = ("export", "nnunet", "-d", "598", "-tr", "nnUNetTrainerNoKD", "-chk", "checkpoint_other.pth")
    assert main([*words, "-o", str(tmp_path / "other.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "other.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        exported = torch.load(io.BytesIO(archive.read(name)), weights_only=True)["network_weights"]
    (first / "checkpoint_other.pth").unlink()
    torch.testing.assert_close(exported, other["network_weights"], rtol=0, atol=0)


def test_leakage_is_recorded_in_the_export(students, tmp_path):
    copy = tmp_path / "nnUNetTrainerNoKD__nnUNetPlans__3d_fullres"
    shutil.copytree(results(students), copy)
    assert provenance(read_trained(copy, ["0"]), None)["leakage"] == {}
    plans = json.loads((copy / "plans.json").read_text())
    (copy / "plans.json").write_text(json.dumps(with_leakage(plans, {"0": "LEAKAGE: the teacher has seen all"})))
    assert provenance(read_trained(copy, ["0"]), None)["leakage"] == {"0": "LEAKAGE: the teacher has seen all"}


def test_an_export_holds_nothing_of_this_package_and_no_state_to_resume(students, tmp_path):
    path = tmp_path / "student.zip"
    folder = export_stock(read_trained(results(students), ["0", "1"]), path, plans_name="small")
    assert folder == f"{DATASET}/nnUNetTrainer__small__3d_fullres"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(
            f"{folder}/{name}"
            for name in (
                "dataset.json",
                "dataset_fingerprint.json",
                "fold_0/checkpoint_final.pth",
                "fold_1/checkpoint_final.pth",
                "plans.json",
                "provenance.json",
            )
        )
        content = torch.load(io.BytesIO(archive.read(f"{folder}/fold_1/checkpoint_final.pth")), weights_only=True)
        plans = json.loads(archive.read(f"{folder}/plans.json"))
    assert content["trainer_name"] == "nnUNetTrainer" and content["optimizer_state"] is None
    assert "nnunet_kd" not in content and "nnunet_kd" not in plans and content["init_args"]["plans"] == plans
    assert content["init_args"]["fold"] == 1


def test_another_model_is_not_replaced(students, tmp_path):
    """The same model is, as after another training."""
    path, model = tmp_path / "student.zip", read_trained(results(students), ["0"])
    first = export_stock(model, path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"student\.zip is there and holds another model: remove it, or give"):
        export_stock(model, path, "other_plans")
    assert path.read_bytes() == before and export_stock(model, path) == first
    path.write_text("notes")
    with pytest.raises(FileExistsError, match="holds another model"):
        export_stock(model, path)
    assert path.read_text() == "notes"


def test_a_network_of_this_package_is_refused(students, tmp_path):
    copy = tmp_path / "nnUNetTrainer__dra__3d_fullres"
    shutil.copytree(results(students), copy)
    plans = json.loads((copy / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    model = read_trained(copy, ["0"])
    architecture["network_class_name"] = "nnunet_kd.networks.dra_unet.DRAUNet"
    model.experiment.plans["configurations"]["3d_fullres"]["architecture"] = architecture
    with pytest.raises(NotImplementedError, match="DRAUNet is a network of this package.*: nnunet_kd export onnx -d"):
        export_stock(model, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize("name", ["../up", "a__b", "", "a/b", "/root"])
def test_plans_that_would_leave_their_folder(students, tmp_path, name):
    model = read_trained(results(students), ["0"])
    if not name:
        model.experiment.plans["plans_name"] = "../.."
    with pytest.raises(ValueError, match="the name of plans can have letters"):
        export_stock(model, tmp_path / "model.zip", plans_name=name or None)
    assert not list(tmp_path.iterdir())


def test_a_data_set_that_would_leave_its_folder(students, tmp_path):
    copy = tmp_path / results(students).name
    shutil.copytree(results(students), copy)
    plans = json.loads((copy / "plans.json").read_text())
    (copy / "plans.json").write_text(json.dumps({**plans, "dataset_name": "../../Dataset001_X"}))
    with pytest.raises(ValueError, match=r"'\.\./\.\./Dataset001_X' in .* is not a valid folder name"):
        read_trained(copy, ["0"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nnunet", "-o", "x.zip", "-tr", "nnUNetTrainerCWD"), "there is no trained model in"),
        (("nnunet", "-o", "x.zip", "-f", "3"), "fold_3/checkpoint_final.pth, only fold_0/checkpoint_best.pth"),
        (("nnunet", "-o", "x.zip", "-f", "x"), "a fold is a number or all, got 'x'"),
        (("nnunet", "-o", "x"), "-o must be a .zip file, got x"),
        (("nnunet", "-o", "x.zip", "--precision", "fp16"), "--precision belongs to export onnx"),
        (("onnx", "-o", "x", "--plans-name", "y"), "--plans-name belongs to export nnunet"),
        (("onnx", "-o", "x", "--images", "y"), "--images and --labels belong together"),
        (("onnx", "-o", "x", "--images", ".", "--labels", "y"), "there is no folder y"),
        (("onnx", "-o", "x", "--precision", "fp8"), "the precision must be one of fp32, fp16, int8, got 'fp8'"),
        (("onnx", "-o", "."), "already exists"),
    ],
)
def test_wrong_arguments(students, tmp_path, monkeypatch, capsys, words, message):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(students.root / name))
    monkeypatch.chdir(tmp_path)
    assert main(["export", words[0], "-d", "598", "-tr", "nnUNetTrainerDCD", *words[1:]]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_broken_weights(students, tmp_path):
    copy = tmp_path / results(students).name
    shutil.copytree(results(students), copy)
    path = copy / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    first = next(iter(content["network_weights"].values()))
    first.view(-1)[0] = float("nan")
    torch.save(content, path)
    with pytest.raises(ValueError, match="are not finite: encoder"):
        read_trained(copy, ["0"])
    content["network_weights"].popitem()
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"do not belong to the plans\.json beside them"):
        read_trained(copy, ["0"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        read_trained(copy, ["0"])


def test_plans_of_an_older_nnunet_are_exported(students, tmp_path):
    """They name no architecture; nnU-Net derives it from their other entries."""
    copy = tmp_path / students.teacher.name
    shutil.copytree(students.teacher, copy)
    plans = json.loads((copy / "plans.json").read_text())
    content = plans["configurations"]["3d_fullres"]
    arguments = content.pop("architecture")["arch_kwargs"]
    widths = arguments["features_per_stage"]
    content |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": widths[0],
        "unet_max_num_features": max(widths),
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    (copy / "plans.json").write_text(json.dumps(plans))
    model = read_trained(copy, ["0"])
    assert model.architecture.endswith(".PlainConvUNet")
    folder = export_stock(model, tmp_path / "model.zip")
    assert install_stock(tmp_path / "model.zip", tmp_path / "results") == [folder]
