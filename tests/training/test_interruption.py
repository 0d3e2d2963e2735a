"""A training that is stopped goes on from the last epoch it has finished; signals do what they always did."""

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
from tests.killing import needs_fork, run_killed
from tests.training.killed_training import FOLDER, KilledTraining, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")


def train_until(epoch: int, number: int | None, *words: str) -> None:
    """A training that gets a signal after its second step in an epoch, when its weights are others than at its end.

    Args:
        epoch: From 0.
        number: Of the signal; ``None``: an exception.
        words: Further arguments.
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


@pytest.mark.slow
@needs_fork
def test_stopped_in_every_way_and_gone_on_with(workspace):
    """Bit by bit, as if nothing had happened."""
    training = KilledTraining(workspace, 5, save_every=50)
    for epoch, number, exit_code in ((2, signal.SIGTERM, -signal.SIGTERM), (3, signal.SIGINT, 1), (4, None, 1)):
        ended = training.run(None, train_until, epoch, number)
        assert ended.exit_code == exit_code, ended.output  # after Ctrl-C multiprocessing's, here
        assert "KeyboardInterrupt" in ended.output or number != signal.SIGINT
        assert f"stopped: the last finished epoch is in {training.fold / 'checkpoint_latest.pth'}, add" in ended.output
        training.check()
        assert training.saved == epoch and not list(training.fold.glob("*.unfinished"))
    training.finish()


@pytest.mark.slow
def test_ctrl_c_ends_nnunets_command_as_ever(workspace):
    """With processes that load batches."""
    workspace.plans("killed", training={**SHORT, "num_epochs": 500, "save_every": 50}, teacher={"plans": "nnUNetPlans"})
    program = Path(sys.executable).parent / "nnUNetv2_train"
    words = ["598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "killed", "-device", "cpu"]
    process = subprocess.Popen(
        [program, *words],
        env=workspace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for jobs behind an &
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


# ---- alone


def listening() -> list[int]:
    """Return a list that gets every SIGTERM which reaches whoever listened before the training."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    return heard


def saves_and_hands_on(folder: Path) -> None:
    """Raise signals in a training, before and after its first epoch has ended."""
    said, heard = [], listening()
    last = LastEpoch(said.append)
    listener = signal.getsignal(signal.SIGTERM)
    with last.saved_when_stopped(folder):
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM] and not list(folder.iterdir())  # no epoch has ended
        last.hold(lambda: {"current_epoch": 1})
        last.hold(lambda: {"current_epoch": 2})
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    assert torch.load(folder / "checkpoint_latest.pth") == {"current_epoch": 2}
    assert len(said) == 1 and signal.getsignal(signal.SIGTERM) is listener
    assert [path.name for path in folder.iterdir()] == ["checkpoint_latest.pth"]


def waits_for_the_file(folder: Path) -> None:
    """A first signal waits until the file is complete; a training that ends leaves nothing to save."""
    last, heard = LastEpoch(print), listening()
    latest = folder / "checkpoint_latest.pth"
    with last.saved_when_stopped(folder):
        last.hold(lambda: {"current_epoch": 1})
        with last.saving(latest):
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
            latest.write_text("of epoch 2")
        assert heard == [signal.SIGTERM]
        last.hold(lambda: pytest.fail("it is on the disk"))
        signal.raise_signal(signal.SIGTERM)
        assert latest.read_text() == "of epoch 2"
        with last.saving(folder / "checkpoint_best.pth"):  # --c does not look for the best where there is a latest
            last.hold(lambda: {"current_epoch": 3})
        signal.raise_signal(signal.SIGTERM)
        assert torch.load(latest) == {"current_epoch": 3}


def keeps_what_is_ignored(folder: Path) -> None:
    """Raise a signal that was ignored before the training, as ``nohup`` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with LastEpoch(print).saved_when_stopped(folder):
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@needs_fork
@pytest.mark.parametrize("raises_signals", [saves_and_hands_on, waits_for_the_file, keeps_what_is_ignored])
def test_signals(tmp_path, raises_signals):
    """In a process of its own: a signal that is not handled would end the whole test run."""
    folder = tmp_path / "fold_0"
    folder.mkdir()
    ended = run_killed(raises_signals, folder, log=tmp_path / "log")
    assert ended.finished and ended.exit_code == 0, ended.output


def test_a_disk_that_is_full_hides_nothing(tmp_path):
    said = []
    last = LastEpoch(said.append)
    (tmp_path / "checkpoint_latest.pth").mkdir()
    with pytest.raises(KeyError, match="of the training"), last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"current_epoch": 1})
        raise KeyError("of the training")
    assert said[0].startswith("stopped: the last finished epoch could not be saved: ")


def load(begun):
    """As a process that loads batches, which does not end by itself."""
    begun.set()
    time.sleep(60)


@needs_fork
def test_a_process_that_loads_batches_ends_as_ever(tmp_path):
    last, fork = LastEpoch(print), multiprocessing.get_context("fork")
    with last.saved_when_stopped(tmp_path):
        last.hold(lambda: {"current_epoch": 1})
        begun = fork.Event()
        worker = fork.Process(target=load, args=(begun,))
        worker.start()
        assert begun.wait(30)  # Python drops signals that reach a process while it is forked
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
def test_saves_are_a_tenth_of_a_training_apart(epochs, expected):
    assert usual_save_every(epochs) == expected
