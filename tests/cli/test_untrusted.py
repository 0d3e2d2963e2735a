"""No command runs code in the checkpoint or the plans of a model from somebody else."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch

from nnunet_kd.cli import main
from nnunet_kd.study.comparison import study_teachers
from nnunet_kd.study.runs import list_runs, rows_of_methods
from nnunet_kd.study.study import Study
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import DATASET, FOLDERS, SHORT, make_trainer

# Each command reads the model in nnUNetTrainer__nnUNetPlans__3d_fullres, as a teacher or to export it.
COMMANDS = {
    "training": None,
    "doctor": ["doctor", "-d", "598"],
    "soft-labels": ["soft-labels", "-d", "598", "--teacher", "-f", "0", "-device", "cpu"],
    "compare": ["compare", "-d", "598", "-m", "NoKD", "DCD", "-o", "made", "-device", "cpu", "-np", "1"],
    "export nnunet": ["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainer", "-o", "made.zip"],
    "export onnx": ["export", "onnx", "-d", "598", "-tr", "nnUNetTrainer", "-o", "made"],
}


class Malice:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def spoil_checkpoint(workspace, mark):
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "extra": Malice(mark)}, path)
    with pytest.raises(FileExistsError):  # without protection, the code does run
        mark.mkdir()
        torch.load(path, weights_only=False)
    mark.rmdir()
    return "contains more than weights and numbers, and loading it could run code"


def spoil_whole_checkpoint(workspace, mark):
    (workspace.teacher / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Malice(mark)))
    return "checkpoint_final.pth"


def edit_plans(workspace, change):
    path = workspace.teacher / "plans.json"
    plans = json.loads(path.read_text())
    change(plans["configurations"]["3d_fullres"])
    path.write_text(json.dumps(plans))


def spoil_plans(workspace, mark):
    def change(configuration):
        configuration["architecture"]["arch_kwargs"] |= {
            "nonlin": "subprocess.Popen",
            "nonlin_kwargs": {"args": ["mkdir", str(mark)]},
        }

    edit_plans(workspace, change)
    return "builds its network with 'subprocess.Popen', which is not part of"


def spoil_configuration(workspace, mark):
    """Stock nnU-Net builds the configuration that the checkpoint names, not the one in the folder's name."""
    plans_file, checkpoint = workspace.teacher / "plans.json", workspace.teacher / "fold_0" / "checkpoint_final.pth"
    plans, content = json.loads(plans_file.read_text()), torch.load(checkpoint, weights_only=False)
    other = json.loads(json.dumps(plans["configurations"]["3d_fullres"]))
    other["architecture"]["arch_kwargs"] |= {
        "nonlin": "subprocess.Popen",
        "nonlin_kwargs": {"args": ["mkdir", str(mark)]},
    }
    plans["configurations"]["other"] = other
    plans_file.write_text(json.dumps(plans))
    content["init_args"]["configuration"] = "other"
    torch.save(content, checkpoint)
    return "checkpoint_final.pth belongs to configuration 'other', not to 3d_fullres"


def spoil_size(workspace, _):
    def change(configuration):
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [10**6, 10**6, 10**6]

    edit_plans(workspace, change)
    return "do not belong to the plans.json beside them"


def spoil_description(workspace, _):
    (workspace.teacher / "dataset.json").write_text('{"a": ' * 100_000)
    return "dataset.json: it is n"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "spoil",
    [spoil_checkpoint, spoil_whole_checkpoint, spoil_plans, spoil_configuration, spoil_size, spoil_description],
    ids=lambda spoil: spoil.__name__,
)
def test_a_spoilt_model_is_refused(workspace, tmp_path, monkeypatch, capsys, command, spoil):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    message = spoil(workspace, tmp_path / "mark")
    if COMMANDS[command] is None:
        with pytest.raises(ValueError) as caught:
            make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
        said = f"{caught.value}\n"
    else:
        assert main(COMMANDS[command]) == 1
        captured = capsys.readouterr()
        said = captured.err or next(f"{line}\n" for line in captured.out.splitlines() if line.startswith("FAIL "))
    assert message in said and str(workspace.teacher) in said and said.count("\n") == 1
    time.sleep(0.2)
    assert not (tmp_path / "mark").exists() and not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    "spoil", [spoil_checkpoint, spoil_plans, spoil_configuration, spoil_size], ids=lambda spoil: spoil.__name__
)
def test_a_study_that_needs_no_teacher_leaves_out_a_spoilt_one(workspace, tmp_path, spoil):
    """Stock nnU-Net would predict with it and thereby unpickle it."""
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    folders = tuple(workspace.root / name for name in FOLDERS)
    study = Study(DATASET, "3d_fullres", plans, folders, tmp_path / "study", "cpu")
    runs = list_runs("nnUNetPlans", rows_of_methods(["NoKD"]), [0], [None])
    (found,) = study_teachers(study, runs, needed=False).values()
    assert found.checkpoint == workspace.teacher / "fold_0" / "checkpoint_final.pth"
    spoil(workspace, tmp_path / "mark")
    assert study_teachers(study, runs, needed=False) == {}
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "spoil", [spoil_checkpoint, spoil_plans, spoil_configuration], ids=lambda spoil: spoil.__name__
)
def test_spoilt_results_do_not_count_as_a_finished_training(workspace, tmp_path, capsys, spoil):
    message = spoil(workspace, tmp_path / "mark")
    results = workspace.teacher.with_name("nnUNetTrainerNoKD__nnUNetPlans__3d_fullres")
    workspace.teacher.rename(results)
    assert main(["compare", "-d", "598", "-m", "NoKD", "-o", str(tmp_path / "study"), "-device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert message in said and str(results) in said and said.rstrip().endswith("give --trust")
    assert not (tmp_path / "mark").exists() and not (tmp_path / "study").exists()


def own_network(workspace, folder, monkeypatch):
    """Give the teacher a network from a package of the user."""
    (folder / "own_networks.py").write_text(
        "from dynamic_network_architectures.architectures.unet import PlainConvUNet\n"
        "class Network(PlainConvUNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    edit_plans(workspace, lambda content: content["architecture"].update(network_class_name="own_networks.Network"))


def test_own_networks_of_a_teacher_are_trusted_in_the_settings(workspace, tmp_path, monkeypatch):
    own_network(workspace, tmp_path, monkeypatch)
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={})
    with pytest.raises(ValueError, match=r"'own_networks\.Network'.* set \"trust_checkpoint\": true in nnunet_kd"):
        make_trainer(nnUNetTrainerDCD, plans, workspace)
    plans["nnunet_kd"]["teacher"]["trust_checkpoint"] = True
    make_trainer(nnUNetTrainerDCD, plans, workspace)


def test_own_networks_are_exported_with_an_option(workspace, tmp_path, monkeypatch, capsys):
    own_network(workspace, tmp_path, monkeypatch)
    words = ["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainer", "-o", str(tmp_path / "made.zip")]
    assert main(words) == 1
    assert "If you trust its source, give --trust" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "other"))
    assert main(["install", str(tmp_path / "made.zip")]) == 1
    assert f"{tmp_path / 'made.zip'}/{DATASET}/" in capsys.readouterr().err and not list((tmp_path / "other").iterdir())
    assert main(["install", str(tmp_path / "made.zip"), "--trust"]) == 0


@pytest.mark.parametrize("command", ["plan", "doctor", "compare"])
def test_programs_in_the_plans_of_a_data_set_are_not_started(workspace, tmp_path, capsys, command):
    shutil.copy(workspace.preprocessed / "nnUNetPlans.json", workspace.teacher / "plans.json")
    spoil_plans(workspace, tmp_path / "mark")
    shutil.copy(workspace.teacher / "plans.json", workspace.preprocessed / "nnUNetPlans.json")
    words = {"plan": [], "doctor": [], "compare": ["-m", "NoKD", "-o", str(tmp_path / "study")]}
    assert main([command, "-d", "598", *words[command]]) == 1
    captured = capsys.readouterr()
    assert "nnUNetPlans.json builds its network with 'subprocess.Popen'" in captured.err + captured.out
    time.sleep(0.2)
    assert not (tmp_path / "mark").exists()
