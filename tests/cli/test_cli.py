import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from nnunet_kd.cli import main, parser


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
        capsys,
        "nnU-Net cannot find nnUNetTrainerBrainSegDMIF, nnUNetTrainerCIRKD,",
        "-d",
        "598",
        "-tr",
        "nnUNetTrainer",
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
