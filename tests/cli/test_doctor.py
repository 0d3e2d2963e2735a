"""Doctor and later commands explain files that nnU-Net cannot use, and the commands that they print work."""

import json
import re
import shlex
import shutil
import subprocess

import pytest

from nnunet_kd.cli import main
from tests.conftest import SHORT

DATASET, PLANS = "dataset.json", "nnUNetPlans.json"
FOLDS = [((0, 1, 2), (3, 4, 5)), ((3, 4, 5), (0, 1, 2))]  # numbers of the training and validation cases


def change(workspace, name, **entries):
    """Change entries of ``dataset.json``, or of a configuration in the plans."""
    path = workspace.preprocessed / name
    content = json.loads(path.read_text())
    (content if name == DATASET else content["configurations"]["3d_fullres"]).update(entries)
    path.write_text(json.dumps(content))


def arguments_of_network(workspace, **changes):
    path = workspace.preprocessed / PLANS
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)
    path.write_text(json.dumps(plans))


def doctor(capsys, *words):
    """Run ``doctor``, and return its lines that begin with FAIL."""
    capsys.readouterr()
    status = main(["doctor", "-d", "598", *words])
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert status == (1 if wrong else 0)
    return wrong


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        (DATASET, {"labels": {"background": 0, "a": 1, "b": 3, "ignore": 2}}, "the label 'ignore' must be 4, one abo"),
        (DATASET, {"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order must list a label for each"),
        (DATASET, {"labels": {"background": 0, "a": []}}, "label 'a' is an empty list"),
        (DATASET, {"labels": {"background": 0, "a": 1, "ignore": [2]}}, "the label 'ignore' must be 2, one above"),
        (DATASET, {"overwrite_image_reader_writer": None}, "overwrite_image_reader_writer must name a reader of nnU-N"),
        (PLANS, {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        (PLANS, {"batch_size": "2"}, 'batch_size must be a whole number of at least 1, got "2"'),
    ],
)
def test_every_command_says_in_one_sentence_what_nnunet_would_assert(
    workspace, tmp_path, capsys, name, entries, message
):
    change(workspace, name, **entries)
    for trainer in ("NoKD", "LogitsKD"):
        (wrong,) = doctor(capsys, "-tr", f"nnUNetTrainer{trainer}")
        assert message in wrong
    out, labels = str(tmp_path / "out"), str(workspace.raw / "labelsTs")
    files = ("-djfile", str(workspace.preprocessed / DATASET), "-pfile", str(workspace.preprocessed / PLANS))
    for words in (
        ("plan", "-d", "598", "-o", "new"),
        ("soft-labels", "-d", "598", "--teacher", "-f", "0"),
        ("compare", "-d", "598", "-m", "NoKD", "-o", out),
        ("evaluate", "-ref", labels, "-pred", f"a={labels}", *files, "-o", out),
    ):
        assert main([*words]) == 1
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, words[0]
    assert not (tmp_path / "out").exists() and not (workspace.preprocessed / "new.json").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerNoKD"])
def test_doctor_builds_the_network(workspace, capsys, trainer):
    arguments_of_network(workspace, nonlin_kwargs={"slope": 1})
    (wrong,) = doctor(capsys, "-tr", trainer)
    assert "nnUNetPlans.json describes for 3d_fullres cannot be built: " in wrong and "argument 'slope'" in wrong
    arguments_of_network(workspace, nonlin_kwargs={})
    change(workspace, PLANS, patch_size=[13, 20, 16])
    (wrong,) = doctor(capsys, "-tr", trainer)
    assert "cannot take its patch of [13, 20, 16] voxels: Sizes of tensors must match" in wrong


def test_doctor_finds_what_nnunet_cannot_train_on(workspace, capsys):
    change(workspace, DATASET, labels={"background": 0, "a": 1, "b": 3})
    (wrong,) = doctor(capsys)
    assert "dataset.json are 0, 1, 3, but nnU-Net needs consecutive labels" in wrong
    change(workspace, DATASET, labels={"background": 0, "a": 1, "b": 2}, channel_names={})
    (wrong,) = doctor(capsys)
    assert "dataset.json has no 'channel_names'" in wrong


def test_doctor_says_how_many_processes_nnunet_should_start(capsys, monkeypatch):
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    main(["doctor"])
    assert re.search(r"^ok    1 CPU core, .*: export nnUNet_def_n_proc=1", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    main(["doctor"])
    assert "\nok    1 CPU core\n" in capsys.readouterr().out


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)


def test_doctor_finds_results_that_cannot_be_written(workspace, capsys, small_disk, monkeypatch):
    disk = small_disk(2**20)
    monkeypatch.setenv("nnUNet_results", str(disk))
    assert doctor(capsys, "-tr", "nnUNetTrainerNoKD") == []
    read_only(disk)
    wrong = doctor(capsys, "-tr", "nnUNetTrainer")
    assert wrong == [
        f"FAIL  nnUNet_results={disk} cannot be written to: it is read-only or belongs to another user. "
        "Fix: export nnUNet_results=/path/to/a/folder/of/yours"
    ]


def test_preprocessed_data_can_be_read_only_once_they_are_split(workspace, capsys, small_disk, monkeypatch):
    disk = small_disk(2**25)
    folder = disk / workspace.dataset
    shutil.copytree(workspace.preprocessed, folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(disk))
    read_only(disk)
    assert doctor(capsys) == []
    assert main(["doctor"]) == 0
    assert f"nnUNet_preprocessed={disk} (read-only)" in capsys.readouterr().out
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    (folder / "splits_final.json").unlink()
    read_only(disk)
    (wrong,) = doctor(capsys, "-tr", "nnUNetTrainerNoKD")
    assert f"{folder} cannot be written to, and the first training writes splits_final.json there" in wrong
    assert doctor(capsys, "-tr", "nnUNetTrainerNoKD", "-f", "all") == []


@pytest.mark.parametrize(
    ("words", "trainer"), [((), "KD"), (("--network", "dra_unet"), "DCD"), (("--network", "vm_unet"), "DualSelfKD")]
)
def test_doctor_accepts_what_plan_says_to_train(workspace, capsys, words, trainer):
    assert main(["plan", "-d", "598", *words]) == 0
    command = re.search(r"train it: nnUNetv2_train 598 (\w+) 0 -tr (\w+) -p (\w+)", capsys.readouterr().out)
    configuration, named, plans = command.groups()
    assert named == f"nnUNetTrainer{trainer}"
    assert doctor(capsys, "-c", configuration, "-tr", named, "-p", plans) == []
    capsys.readouterr()
    assert main(["doctor", "-d", "598", "-c", configuration, "-p", plans]) == 0
    assert f"ok    trainer {named}\n" in capsys.readouterr().out


def test_plan_recommends_no_recipe_that_cannot_start(workspace, capsys):
    """Adjacent residual stages of equal width have no projection."""
    plans = workspace.plans("residual")
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"]}
    (workspace.preprocessed / "residual.json").write_text(json.dumps(plans))
    for reduction, trainer in (("4", "KD"), ("8", "DCD")):
        assert main(["plan", "-d", "598", "-p", "residual", "-r", reduction]) == 0
        printed = capsys.readouterr().out
        assert f"train it: nnUNetv2_train 598 3d_fullres 0 -tr nnUNetTrainer{trainer} -p residual_r" in printed
        assert ("nnUNetTrainerKD cannot start it from its teacher: the student has other" in printed) == (
            reduction == "8"
        )


def test_plan_of_kd_sam_says_what_comes_first(workspace, capsys):
    assert main(["plan", "-d", "598", "--network", "kd_sam"]) == 0
    printed = capsys.readouterr().out
    entry = re.search(r"first: name SAM's weights in its nnunet_kd block: (.*)", printed)
    assert printed.index("first: ") < printed.index("train it: ")
    path = workspace.preprocessed / "nnUNetPlans_kd_sam.json"
    plans = json.loads(path.read_text())
    plans["nnunet_kd"].update(json.loads(f"{{{entry[1]}}}"))
    path.write_text(json.dumps(plans))
    (wrong,) = doctor(capsys, "-c", "2d", "-p", "nnUNetPlans_kd_sam")
    assert "there are no weights of SAM in FILE" in wrong


@pytest.mark.slow
def test_the_commands_for_a_cascade_lead_to_its_second_stage(workspace, capsys):
    splits = [{"train": [f"head_00{i}" for i in train], "val": [f"head_00{i}" for i in val]} for train, val in FOLDS]
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    plans = workspace.plans("cascade", training={**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1})
    configurations = plans["configurations"]
    configurations["3d_lowres"] = {**configurations["3d_fullres"], "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (workspace.preprocessed / "cascade.json").write_text(json.dumps(plans))
    words = ("-c", "3d_cascade_fullres", "-p", "cascade")
    first, second = doctor(capsys, *words, "-tr", "nnUNetTrainerLogitsKD")
    assert "and 6 of 6 cases have none in" in first and "there is no teacher in" in second
    stock = [f"nnUNetv2_train {workspace.dataset} 3d_lowres {fold} -tr nnUNetTrainer -p cascade" for fold in (0, 1)]
    last = f"nnUNetv2_train {workspace.dataset} 3d_cascade_fullres 0 -tr nnUNetTrainer -p cascade"
    assert second.endswith(f"Train it: {' && '.join([*stock, last])}")

    (wrong,) = doctor(capsys, *words, "-tr", "nnUNetTrainerNoKD")
    commands = wrong.partition("Fix: ")[2].split(" && ")
    assert len(commands) == 2
    workspace.command(*shlex.split(commands[0]), "-device", "cpu")
    (wrong,) = doctor(capsys, *words, "-tr", "nnUNetTrainerNoKD")
    assert "and 3 of 6 cases have none in" in wrong and wrong.endswith(f"Fix: {commands[1]}")
    workspace.command(*shlex.split(commands[1]), "-device", "cpu")
    assert doctor(capsys, *words, "-tr", "nnUNetTrainerNoKD") == []
    folder = workspace.results / "nnUNetTrainerNoKD__cascade__3d_lowres" / "predicted_next_stage"
    shutil.rmtree(folder)
    (wrong,) = doctor(capsys, *words, "-tr", "nnUNetTrainerNoKD")
    assert wrong.endswith(f"Fix: {commands[0]} --val && {commands[1]} --val")
    workspace.command(*shlex.split(commands[0]), "--val", "-device", "cpu")
    (wrong,) = doctor(capsys, *words, "-tr", "nnUNetTrainerNoKD")
    assert wrong.endswith(f"Fix: {commands[1]} --val")
