"""Commands that a message of ours prints are run here as they are printed."""

import json
import re
import shlex
import shutil
from importlib.metadata import distribution

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import DATASET, FOLDERS, make_trainer
from tests.training.test_vm_unet import plans_for

ON_CPU = ("-device", "cpu", "-npp", "1", "-nps", "1")


def command(printed, name, **given):
    """The words of a printed command, with what a person puts in the place of its words in capitals."""
    (line,) = (line for line in printed.splitlines() if name in line)
    words = shlex.split(line[line.index(name) :].split(" for ")[0])
    assert not [word for word in words if word.isupper() and word not in given], words
    return [str(given.get(word, word)) for word in words]


@pytest.fixture
def folders(students, monkeypatch):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(students.root / name))
    return students


def exported(capsys, *words):
    assert main(["export", *words]) == 0
    return capsys.readouterr().out


def test_after_an_export_for_stock_nnunet(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("-d", "598", "-tr", "nnUNetTrainerNoKD", "-f", "0", "1", "-o", "a student.zip")
    printed = exported(capsys, "nnunet", *words)
    (tmp_path / "results").mkdir()
    there = {"nnUNet_results": str(tmp_path / "results")}
    folders.command(*command(printed, "nnUNetv2_install_pretrained_model_from_zip"), **there)
    given = {"IN": folders.raw / "imagesTs", "OUT": tmp_path / "out"}
    folders.command(*command(printed, "nnUNetv2_predict", **given), *ON_CPU, **there)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_after_an_export_to_onnx_and_where_there_is_no_model(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = folders.raw / "imagesTs"
    assert main(["predict", "-m", "a model", "-i", str(images), "-o", "out"]) == 1
    words = command(capsys.readouterr().err, "nnunet_kd export", ID="598", TRAINER="nnUNetTrainerNoKD")
    printed = exported(capsys, *words[2:])
    given = {"IN": images, "OUT": tmp_path / "out"}
    assert main(command(printed, "nnunet_kd predict", **given)[1:]) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def saved(trainer):
    """What nnU-Net leaves of a training, which is left out."""
    trainer.initialize()
    folder = trainer.output_folder_base
    for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(content, file)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def test_the_second_stage_of_a_cascade(workspace, tmp_path, capsys, monkeypatch):
    """It is predicted with the segmentations of the first."""
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
    assert main(command(refused, "nnunet_kd export nnunet")[1:]) == 0 and (tmp_path / "student.zip").is_file()

    there = {"nnUNet_results": str(tmp_path / "results")}
    workspace.command(*command(printed, "nnUNetv2_install_pretrained_model_from_zip"), **there)
    before = tmp_path / "before"
    before.mkdir()
    for path in (workspace.raw / "imagesTs").glob("*_0000.nii.gz"):
        shutil.copy(next((workspace.raw / "labelsTs").iterdir()), before / path.name.replace("_0000", ""))
    given = {"IN": workspace.raw / "imagesTs", "OUT": tmp_path / "out", "BEFORE": before}
    workspace.command(*command(printed, "nnUNetv2_predict", **given), *ON_CPU, **there)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_vm_unet_which_neither_stock_nnunet_nor_onnx_has(workspace, tmp_path, capsys, monkeypatch):
    """Both refusals lead to the same way, which leads to a model that is installed and predicts."""
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(nnUNetTrainerNoKD, plans_for(workspace, {"num_epochs": 1}), workspace, configuration="2d")
    trainer.run_training()
    trainer.perform_actual_validation()  # as nnU-Net's command does then
    words = ("-d", "598", "-c", "2d", "-tr", "nnUNetTrainerNoKD", "-p", "nnUNetPlans_vm_unet", "-o")
    commands = set()
    for kind, out in (("onnx", "model"), ("nnunet", "model.zip")):
        assert main(["export", kind, *words, out]) == 1
        refused = capsys.readouterr().err
        assert re.match(r"nnunet_kd: VMUNet (has no form in ONNX|is a network of this package, which stock)", refused)
        commands.add(tuple(command(refused, "nnUNetv2_export_model_to_zip")))
    (words,) = commands
    workspace.command(*words)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert main(["install", "student.zip"]) == 0
    images, out = str(workspace.raw / "imagesTs"), str(tmp_path / "out")
    words = ("-d", DATASET, "-c", "2d", "-tr", "nnUNetTrainerNoKD", "-p", "nnUNetPlans_vm_unet", "-f", "0")
    there = {"nnUNet_results": str(tmp_path / "results")}
    workspace.command("nnUNetv2_predict", *words, "-i", images, "-o", out, *ON_CPU, **there)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_a_network_of_ours_that_onnx_has(workspace, tmp_path, capsys, monkeypatch):
    from nnunet_kd.planning import student_plans

    monkeypatch.chdir(tmp_path)
    plans = student_plans(workspace.plans(), 4, name="dra", network="dra_unet")
    saved(make_trainer(nnUNetTrainer, plans, workspace, configuration="2d"))
    words = ("-d", "598", "-tr", "nnUNetTrainer", "-p", "dra", "-c", "2d", "-o", "x.zip")
    assert main(["export", "nnunet", *words]) == 1
    printed = exported(capsys, *command(capsys.readouterr().err, "nnunet_kd export onnx")[2:])
    assert printed.splitlines()[-1] == "then: nnunet_kd predict -m student_onnx -i IN -o OUT"


def test_extras_that_messages_name_are_there():
    """pip install 'nnunet_kd[onnx]' itself needs the network."""
    assert {"onnx", "openvino"} <= {*(distribution("nnunet_kd").metadata.get_all("Provides-Extra") or [])}
