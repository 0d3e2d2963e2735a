"""The commands in our messages run as printed."""

import json
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main, parser
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.commands import printed_command
from tests.conftest import DATASET, make_trainer, note_validated
from tests.vm_unet_plans import plans_for

ON_CPU = ("-device", "cpu", "-npp", "1", "-nps", "1")


def exported(capsys, *words):
    assert main(["export", *words]) == 0
    return capsys.readouterr().out


def saved(trainer):
    """Save what nnU-Net leaves after a training, without training."""
    trainer.initialize()
    folder = trainer.output_folder_base
    for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(content, file)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def test_the_second_stage_of_a_cascade(workspace, tmp_path, capsys, monkeypatch):
    """It predicts with the segmentations of the first stage."""
    monkeypatch.chdir(tmp_path)
    plans = workspace.plans("cascade")
    plans["configurations"]["3d_lowres"] = {**plans["configurations"]["3d_fullres"], "next_stage": "second"}
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    saved(make_trainer(nnUNetTrainer, plans, workspace, configuration="second"))
    words = ("-d", "598", "-tr", "nnUNetTrainer", "-p", "cascade", "-c", "second", "-o")
    printed = exported(capsys, "nnunet", *words, "second.zip")
    assert "       BEFORE: segmentations of IN by a model of 3d_lowres, which is exported by itself\n" in printed
    (tmp_path / "results").mkdir()
    assert main(["export", "onnx", *words, "second"]) == 1
    refused = capsys.readouterr().err
    assert "ONNX models take no segmentations by 3d_lowres, which this one needs. Export it for stock" in refused
    assert main(printed_command(refused, "nnunet_kd export nnunet")[1:]) == 0 and (tmp_path / "student.zip").is_file()

    there = {"nnUNet_results": str(tmp_path / "results")}
    workspace.command(*printed_command(printed, "nnUNetv2_install_pretrained_model_from_zip"), **there)
    before = tmp_path / "before"
    before.mkdir()
    for path in (workspace.raw / "imagesTs").glob("*_0000.nii.gz"):
        shutil.copy(next((workspace.raw / "labelsTs").iterdir()), before / path.name.replace("_0000", ""))
    given = {"IN": workspace.raw / "imagesTs", "OUT": tmp_path / "out", "BEFORE": before}
    workspace.command(*printed_command(printed, "nnUNetv2_predict", **given), *ON_CPU, **there)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_vm_unet_which_neither_stock_nnunet_nor_onnx_has(workspace, tmp_path, capsys, monkeypatch):
    """Both refusals name the same command, whose model can be installed and predicts."""
    monkeypatch.chdir(tmp_path)
    saved(make_trainer(nnUNetTrainerNoKD, plans_for(workspace), workspace, configuration="2d"))
    folder = workspace.results / "nnUNetTrainerNoKD__nnUNetPlans_vm_unet__2d"
    for name in ("dataset_fingerprint.json", "fold_0/progress.png"):
        (folder / name).write_text("{}")
    note_validated(folder / "fold_0", [])
    words = ("-d", "598", "-c", "2d", "-tr", "nnUNetTrainerNoKD", "-p", "nnUNetPlans_vm_unet", "-o")
    commands = set()
    for kind, out in (("onnx", "model"), ("nnunet", "model.zip")):
        assert main(["export", kind, *words, out]) == 1
        refused = capsys.readouterr().err
        assert re.match(r"nnunet_kd: VMUNet (has no form in ONNX|is a network of this package, which stock)", refused)
        commands.add(tuple(printed_command(refused, "nnUNetv2_export_model_to_zip")))
    (words,) = commands
    workspace.command(*words)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert main(["install", "student.zip"]) == 0
    images, out = str(workspace.raw / "imagesTs"), str(tmp_path / "out")
    words = ("-d", DATASET, "-c", "2d", "-tr", "nnUNetTrainerNoKD", "-p", "nnUNetPlans_vm_unet", "-f", "0")
    there = {"nnUNet_results": str(tmp_path / "results")}
    workspace.command("nnUNetv2_predict", *words, "-i", images, "-o", out, *ON_CPU, **there)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.slow
def test_a_network_of_ours_that_onnx_has(workspace, tmp_path, capsys, monkeypatch):
    """Either message leads to an ONNX model, and that to a prediction."""
    monkeypatch.chdir(tmp_path)
    plans = student_plans(workspace.plans(), 4, name="nnUNetPlans", network="dra_unet")
    saved(make_trainer(nnUNetTrainerNoKD, plans, workspace))
    images, out = workspace.raw / "imagesTs", tmp_path / "out"
    assert main(["predict", "-m", "a model", "-i", str(images), "-o", str(out)]) == 1
    first = printed_command(capsys.readouterr().err, "nnunet_kd export", ID=DATASET, TRAINER="nnUNetTrainerNoKD")
    assert main(["export", "nnunet", *first[3:-1], "x.zip"]) == 1
    second = printed_command(capsys.readouterr().err, "nnunet_kd export onnx")
    given = [vars(parser().parse_args(words[1:])) for words in (first, second)]
    assert [one.pop("o") for one in given] == [Path("a model"), Path("student_onnx")] and given[0] == given[1]
    printed = exported(capsys, *first[2:])
    assert main(printed_command(printed, "nnunet_kd predict", IN=images, OUT=out)[1:]) == 0
    assert len(list(out.glob("*.nii.gz"))) == 1


def test_extras_that_messages_name_exist():
    """The test reads the metadata, because pip install 'nnunet_kd[onnx]' needs the network."""
    assert {"onnx", "openvino"} <= {*(distribution("nnunet_kd").metadata.get_all("Provides-Extra") or [])}
