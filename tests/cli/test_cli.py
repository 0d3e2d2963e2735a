import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import main, parser
from nnunet_kd.cli.dataset_folder import no_plans
from tests.conftest import make_trainer


def test_help_of_every_command_teaches(capsys):
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert len(commands.choices) == 11
    for words in ([], *([name] for name in commands.choices)):
        with pytest.raises(SystemExit) as left:
            main([*words, "--help"])
        assert left.value.code == 0
        assert len(capsys.readouterr().out) > 300


def test_help_and_the_parser_import_nothing_heavy():
    code = "import sys, nnunet_kd.cli as c; c.parser(); print('torch' in sys.modules, 'nnunetv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_libraries_say_to_their_developers_is_hidden():
    """This includes processes that are spawned; a user who asks for warnings gets them."""
    code = (
        "import subprocess, warnings; from nnunet_kd.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: warnings.warn('for developers', FutureWarning); warnings.warn('for users')\n"
        "print(subprocess._args_from_interpreter_flags())"
    )
    for options, hidden in (([], True), (["-W", "default"], False)):
        done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
        assert ("for developers" in done.stderr) != hidden and "for users" in done.stderr
        assert ("-Wignore::FutureWarning" in done.stdout) == hidden


def test_module_and_script_are_the_same_command():
    done = subprocess.run([sys.executable, "-m", "nnunet_kd.cli", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("nnunet_kd 0.")
    assert parser().prog == "nnunet_kd"


def test_wrong_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["paln"])
    assert left.value.code == 2 and "invalid choice" in capsys.readouterr().err


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


def test_doctor_finds_no_problems(workspace, capsys):
    assert main(["doctor", "-d", "598"]) == 0
    printed = capsys.readouterr().out
    names = ("BrainSegDMIF", "CWD", "DCD", "DualSelfKD", "FitNets", "FreeKD", "IFVD", "KD", "KDSAM", "LogitsKD", "NoKD")
    names = sorted((*names, "SAMKD", "RKD", "CIRKD", "SKD", "DPRD", "ReCoKD"))
    assert "nnU-Net finds " + ", ".join(f"nnUNetTrainer{name}" for name in names) in printed
    assert "nnUNetTrainerKD starts from its teacher" in printed and printed.endswith("no problems found\n")
    assert not (workspace.results / "nnUNetTrainerKD__nnUNetPlans__3d_fullres").exists()
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerDCD"]) == 0
    assert "the teacher was found and fits: 3 stages shared" in capsys.readouterr().out
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerNoKD", "--cases"]) == 0
    assert "all values of 6 cases are finite, and all labels are declared" in capsys.readouterr().out
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainer"]) == 0


def doctor_says(capsys, message, *words):
    assert main(["doctor", *words]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert len(wrong) == 1 and message in wrong[0], wrong


def test_doctor_names_what_is_wrong_and_how_to_fix_it(workspace, capsys, monkeypatch):
    doctor_says(capsys, "has no configuration 3d_lowres, only 2d, 3d_fullres", "-d", "598", "-c", "3d_lowres")
    doctor_says(capsys, "nnU-Net finds no trainer nnUNetTrainerX", "-d", "598", "-tr", "nnUNetTrainerX")
    doctor_says(capsys, "has fold_0, but not fold_2. Train it: nnUNetv2_train", "-d", "598", "-f", "2")
    doctor_says(capsys, "nnU-Net knows no data set 597", "-d", "597")
    doctor_says(capsys, "other.json. Fix: choose one of", "-d", "598", "-p", "other")
    workspace.plans("bad", training={"epochs": 3})
    doctor_says(
        capsys,
        "bad.json: unknown key 'epochs' in nnunet_kd.training: did you mean 'num_epochs'?",
        "-d",
        "598",
        "-p",
        "bad",
    )
    shutil.copy(workspace.preprocessed / "nnUNetPlans.json", workspace.preprocessed / "copy.json")
    doctor_says(capsys, "calls itself nnUNetPlans: set plans_name to copy", "-d", "598", "-p", "copy")
    fingerprint = workspace.preprocessed / "dataset_fingerprint.json"
    fingerprint.rename(workspace.root / "away.json")
    message = (
        f"there is no {fingerprint}, without which no training can start. Fix: nnUNetv2_extract_fingerprint -d 598"
    )
    doctor_says(capsys, message, "-d", "598")
    (workspace.root / "away.json").rename(fingerprint)
    monkeypatch.setenv("nnUNet_extTrainer", "/nowhere")
    doctor_says(
        capsys, "nnU-Net cannot find nnUNetTrainerBrainSegDMIF, nnUNetTrainerCWD,", "-d", "598", "-tr", "nnUNetTrainer"
    )
    monkeypatch.undo()


def test_doctor_reads_all_cases_even_if_one_is_broken(workspace, capsys):
    folder = next(workspace.preprocessed.glob("*3d_fullres"))
    cases = sorted(path.stem for path in folder.glob("*.pkl"))
    words = ("-d", "598", "-tr", "nnUNetTrainerNoKD", "--cases")
    for case in (cases[0], cases[2]):
        path = folder / f"{case}.b2nd"
        content = path.read_bytes()
        path.unlink()  # the file is a link shared with other tests
        path.write_bytes(content[: len(content) // 2])
    assert main(["doctor", *words]) == 1
    printed = capsys.readouterr().out
    assert f"FAIL  {cases[0]} cannot be read" in printed and f"; {cases[2]} cannot be read" in printed
    (folder / ".DS_Store").touch()
    doctor_says(capsys, f"{folder} contains .DS_Store, which nnU-Net mistakes for a case: remove it", *words)
    for path in folder.glob("*.pkl"):
        path.unlink()
    assert main(["doctor", "-d", "598"]) == 1
    (folder / f"{cases[1]}.pkl").touch()
    assert main(["doctor", "-d", "598"]) == 0
    assert f"1 preprocessed cases in {folder}, dataset.json says 6" in capsys.readouterr().out


def test_doctor_reports_soft_labels_that_leak(workspace, capsys):
    """The command in its message makes soft labels that do not leak."""
    assert main(["soft-labels", "-d", "598", "--teacher", "-f", "0", "--disable_tta", "-device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD"]) == 0
    assert "needs no teacher, the soft labels 'nnunet' were found and fit" in capsys.readouterr().out
    words = ["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD", "-f", "1"]
    assert main(words) == 1
    found = re.search(r"Fix: nnunet_kd (soft-labels .*), and in the plans \"nnunet_kd\": (.*)", capsys.readouterr().out)
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    assert main([*shlex.split(found[1]), "--disable_tta", "-device", "cpu"]) == 0
    workspace.plans("nnUNetPlans", **json.loads(found[2]))
    assert main(words) == 0
    assert "the soft labels 'fold_1' were found and fit" in capsys.readouterr().out


def test_doctor_reports_initial_weights_that_leak(workspace, capsys):
    workspace.plans("start", training={"initial_weights": "teacher"}, teacher={"plans": "nnUNetPlans"})
    words = ("-d", "598", "-tr", "nnUNetTrainerNoKD", "-p", "start")
    assert main(["doctor", *words]) == 0
    assert "nnUNetTrainerNoKD starts from its teacher" in capsys.readouterr().out
    workspace.plans("start", training={"initial_weights": "teacher"}, teacher={"plans": "nnUNetPlans", "folds": [0]})
    doctor_says(capsys, 'Fix: set nnunet_kd.teacher.folds to "same" in the plans', *words, "-f", "1")


def test_doctor_without_folders(workspace, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    doctor_says(capsys, "nnUNet_results is not set. Fix: export nnUNet_results=")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["plan", "-d", "598"], "nnUNet_preprocessed"),
        (["compare", "-d", "598", "-c", "2d", "-m", "NoKD", "-o", "study"], "nnUNet_preprocessed"),
        (["install", "student.zip"], "nnUNet_results"),
        (["export", "nnunet", "-d", "598", "-tr", "nnUNetTrainerDCD", "-o", "student.zip"], "nnUNet_results"),
        (["dataset", "FetalHeadHC18", "."], "nnUNet_raw"),
    ],
)
def test_a_variable_that_is_not_set(monkeypatch, capsys, words, name):
    monkeypatch.delenv(name, raising=False)
    assert main(words) == 1
    assert f"nnunet_kd: {name} is not set: export {name}=/path/to/{name}" in capsys.readouterr().err
