"""Errors of this package are the last output of nnU-Net's command, whichever process raises them."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_kd.training.refusals import said_last
from tests.commands import run_command
from tests.conftest import SHORT, make_trainer

WORDS = ("598", "3d_fullres", "0", "-tr", "nnUNetTrainerNoKD", "-p", "wrong", "-device", "cpu")
SENTENCE = "nnunet_kd: unknown key 'epochs' in nnunet_kd.training: did you mean 'num_epochs'?"


def last_lines(output: str) -> list[str]:
    return output.rstrip("\n").splitlines()[-3:]


@pytest.mark.slow
def test_the_sentence_is_last_and_alone(workspace):
    """Run a process as a user would, with both streams in one pipe."""
    workspace.plans("wrong", training={"epochs": 3})
    program = Path(sys.executable).parent / "nnUNetv2_train"
    done = subprocess.run(
        [program, *WORDS], env=workspace.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    error, empty, sentence = last_lines(done.stdout)
    assert done.returncode == 1 and sentence == SENTENCE and empty == "" and error.startswith("ValueError: ")
    assert done.stdout.count("Traceback (most recent call last)") == 1 and done.stdout.count(SENTENCE) == 1


PROCESS = """
from torch import multiprocessing
from nnunet_kd.nnunet.settings import read_settings
from nnunet_kd.training.refusals import said_last

@said_last
def refuse(rank):
    read_settings({"nnunet_kd": {"training": {"epochs": 3}}})

if __name__ == "__main__":
    multiprocessing.spawn(refuse, nprocs=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
def test_the_sentence_of_a_process_of_several(tmp_path):
    """nnU-Net's -num_gpus starts processes whose tracebacks the command shows as its own."""
    script = tmp_path / "several.py"
    script.write_text(PROCESS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1
    assert last_lines(done.stderr)[1:] == ["", SENTENCE] and done.stderr.count(SENTENCE) == 1


def test_a_finished_training_is_refused_in_one_sentence(workspace):
    """The command keeps the checkpoint."""
    from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD

    plans = workspace.plans("wrong", training=SHORT, teacher={"plans": "nnUNetPlans"})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    before = final.read_bytes()
    done = run_command(["nnUNetv2_train", *WORDS], workspace.environment())
    _, empty, sentence = last_lines(done.stdout)
    assert done.returncode == 1 and empty == ""
    assert sentence.startswith(f"nnunet_kd: {final.parent} holds a finished training, which is not overwritten: add")
    assert final.read_bytes() == before
    assert run_command(["nnUNetv2_train", *WORDS, "--val"], workspace.environment()).returncode == 0
    assert final.read_bytes() == before


# ---- programs that call nnU-Net


@pytest.fixture
def hook(monkeypatch):
    """The exception hook of a program, restored after the test."""
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: shown.append(arguments))
    return shown


@said_last
def refuse(error):
    raise error


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setitem(globals(), "__name__", "nnunet_kd.tests")


def run_training_entry(error):
    """Stand in for nnU-Net's function of this name."""
    refuse(error)


def caught(function, error):
    with pytest.raises(type(error)) as raised:
        function(error)
    assert raised.value is error
    return raised


def test_a_program_that_catches_it_sees_no_difference(hook, ours):
    before = sys.excepthook
    error = ValueError("a sentence")
    assert str(caught(refuse, error).value) == "a sentence" and not hasattr(error, "__notes__")
    assert sys.excepthook is before


def test_the_hook_is_restored(hook, ours, capsys):
    before = sys.excepthook
    error, other = ValueError("a sentence"), KeyError("other")
    caught(run_training_entry, error)
    sys.excepthook(KeyError, other, None)
    assert hook == [(KeyError, other, None)] and capsys.readouterr().err == ""
    assert sys.excepthook is before
    caught(run_training_entry, NotImplementedError("another"))
    sys.excepthook(ValueError, error, None)
    assert capsys.readouterr().err == "\nnnunet_kd: a sentence\n" and sys.excepthook is before


def test_errors_of_libraries_keep_only_their_traceback(hook):
    before = sys.excepthook
    for error in (ValueError("of a library"), KeyError("of anybody")):
        caught(run_training_entry, error)
    assert sys.excepthook is before
