"""A stopped training resumes from its last finished epoch, and signals keep their effect."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnunet_kd.training import interruption
from nnunet_kd.training.interruption import LastEpoch, usual_save_every
from nnunet_kd.training.trainer import DistillationTrainer
from tests.conftest import SHORT
from tests.killing import needs_fork
from tests.training.killed_training import FOLDER, KilledTraining, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")


def train_until(epoch: int, number: int | None, *words: str) -> None:
    """Run a training that is stopped in the middle of an epoch, when its weights differ from those at the end.

    Args:
        epoch: The epoch, counted from 0.
        number: The number of the signal; ``None`` for an exception.
        words: Further arguments of the command.
    """
    step, steps = DistillationTrainer.train_step, []

    def stopping(trainer, batch):
        numbers = step(trainer, batch)
        steps.append(trainer.current_epoch)
        if steps.count(epoch) == 2:
            if number is None:
                raise RuntimeError("out of memory")
            os.kill(os.getpid(), number)
        return numbers

    DistillationTrainer.train_step = stopping
    train(*words)


@needs_fork
def test_resuming_after_every_kind_of_stop(workspace):
    """The result equals an undisturbed training bit by bit."""
    training = KilledTraining(workspace, 5, save_every=50)
    for epoch, number, exit_code in ((2, signal.SIGTERM, -signal.SIGTERM), (3, signal.SIGINT, 1), (4, None, 1)):
        ended = training.run(None, train_until, epoch, number)
        assert ended.exit_code == exit_code, ended.output  # after Ctrl-C, multiprocessing's exit code
        assert "KeyboardInterrupt" in ended.output or number != signal.SIGINT
        assert f"stopped: the last finished epoch is in {training.fold / 'checkpoint_latest.pth'}, add" in ended.output
        training.check()
        assert training.saved == epoch and not list(training.fold.glob("*.unfinished"))
    training.finish()


@pytest.mark.slow
def test_ctrl_c_ends_nnunets_command_as_usual(workspace):
    """The command has processes that load batches."""
    workspace.plans("killed", training={**SHORT, "num_epochs": 500, "save_every": 50}, teacher={"plans": "nnUNetPlans"})
    program = Path(sys.executable).parent / "nnUNetv2_train"
    words = ["598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "killed", "-device", "cpu"]
    process = subprocess.Popen(
        [program, *words], env=workspace.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.rstrip().endswith(": Epoch 2"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT, "".join(seen[-20:])
    latest = workspace.results / FOLDER / "fold_0" / "checkpoint_latest.pth"
    saved = torch.load(latest, weights_only=False)["current_epoch"]
    assert saved >= 2 and "".join(seen).count("stopped: the last finished epoch is in") == 1


# ---- LastEpoch alone


@pytest.fixture
def heard():
    """The signals that reach the handler installed before the training."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_signal_saves_and_reaches_the_previous_handler(tmp_path, heard):
    said = []
    last = LastEpoch(said.append)
    listener = signal.getsignal(signal.SIGTERM)
    with last.saved_when_stopped(tmp_path):
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM] and not list(tmp_path.iterdir())  # no epoch has ended
        last.hold(lambda: {"current_epoch": 1})
        last.hold(lambda: {"current_epoch": 2})
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    assert torch.load(tmp_path / "checkpoint_latest.pth") == {"current_epoch": 2}
    assert len(said) == 1 and signal.getsignal(signal.SIGTERM) is listener
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_latest.pth"]


def test_newer_checkpoints_are_not_replaced(tmp_path, heard):
    """A first signal waits until the file is complete, and a finished training has nothing left to save."""
    last = LastEpoch(print)
    latest = tmp_path / "checkpoint_latest.pth"
    with last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"current_epoch": 1})
        with last.saving(latest):
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
            latest.write_text("of epoch 2")
        assert heard == [signal.SIGTERM]
        last.hold(lambda: pytest.fail("it is on the disk"))
        signal.raise_signal(signal.SIGTERM)
        assert latest.read_text() == "of epoch 2"
        with last.saving(tmp_path / "checkpoint_best.pth"):  # --c ignores the best checkpoint if there is a latest one
            last.hold(lambda: {"current_epoch": 3})
        signal.raise_signal(signal.SIGTERM)
        assert torch.load(latest) == {"current_epoch": 3}


def test_a_full_disk_does_not_hide_the_signal(tmp_path):
    said = []
    last = LastEpoch(said.append)
    (tmp_path / "checkpoint_latest.pth").mkdir()
    with pytest.raises(KeyError, match="of the training"), last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"current_epoch": 1})
        raise KeyError("of the training")
    assert said[0].startswith("stopped: the last finished epoch could not be saved: ")


def test_ignored_signals_remain_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with LastEpoch(print).saved_when_stopped(tmp_path):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def load(begun):
    """Wait like a process that loads batches, which does not end by itself."""
    begun.set()
    time.sleep(60)


@needs_fork
def test_a_process_that_loads_batches_ends_as_usual(tmp_path):
    last, fork = LastEpoch(print), multiprocessing.get_context("fork")
    with last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"current_epoch": 1})
        begun = fork.Event()
        worker = fork.Process(target=load, args=(begun,))
        worker.start()
        assert begun.wait(30)  # Python drops signals that arrive during a fork
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_large_checkpoints_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "LARGEST", 2**20)
    said = []
    last = LastEpoch(said.append)
    with pytest.raises(RuntimeError), last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"weights": torch.zeros(2**19)})
        last.hold(lambda: pytest.fail("it would be as large"))
        raise RuntimeError
    assert len(said) == 1 and "larger than 1 MiB" in said[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 1), (19, 1), (40, 4), (499, 49), (500, 50), (1000, 50), (5000, 50)]
)
def test_checkpoints_are_a_tenth_of_a_training_apart(epochs, expected):
    assert usual_save_every(epochs) == expected
