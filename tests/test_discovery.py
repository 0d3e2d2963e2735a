import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_kd.discovery import VARIABLE, trainers_folder

SHOW = (
    f"import os, sys; print(os.environ['{VARIABLE}']);"
    "print(*sorted(name for name in ('torch', 'numpy', 'nnunetv2') if name in sys.modules))"
)


def start_python(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **variables}, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_interpreter_start_announces_the_trainers_and_imports_nothing_heavy():
    folders, heavy = start_python(SHOW)
    assert folders == trainers_folder() and heavy == ""


def test_folders_of_the_user_come_first():
    own = os.pathsep.join(["/somewhere/mine", "/elsewhere"])
    folders, _ = start_python(SHOW, **{VARIABLE: own})
    assert folders == own + os.pathsep + trainers_folder()


def test_a_child_process_does_not_add_it_twice():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW!r}])"
    assert start_python(code)[0] == trainers_folder()


def test_without_the_start_up_file_the_folder_is_printed():
    done = subprocess.run([sys.executable, "-m", "nnunet_kd.discovery"], capture_output=True, text=True)
    assert done.stdout.strip() == trainers_folder()


TRAINERS = sorted(path.stem for path in Path(trainers_folder()).glob("nnUNetTrainer*.py"))


@pytest.mark.parametrize("name", TRAINERS)
def test_nnunet_finds_every_trainer(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    found = recursive_find_trainer_class_by_name(name)
    assert found.__name__ == name
    assert found.__doc__


def test_trainers_import_as_a_package_too():
    from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD

    assert nnUNetTrainerDCD.terms[0].name == "dcd"
    assert "nnUNetTrainerDCD" in TRAINERS and "nnUNetTrainerNoKD" in TRAINERS


@pytest.mark.slow
def test_a_user_trainer_of_the_same_name_wins(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD as Theirs\n"
        "class nnUNetTrainerDCD(Theirs):\n    mine = True\n"
    )
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('nnUNetTrainerDCD').mine, find('nnUNetTrainerNoKD').__name__)"
    )
    assert start_python(code, **{VARIABLE: str(tmp_path)})[-1] == "True nnUNetTrainerNoKD"
