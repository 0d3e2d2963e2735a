"""What carries out the trainings of a study: one after the other, several at once on this machine, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nnunet_kd.storage.processes import BusyError
from nnunet_kd.study.board import Board, Watcher
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.epoch_times import epoch_times
from nnunet_kd.study.jobs import Outcome
from nnunet_kd.study.launchers import LocalLauncher
from nnunet_kd.study.trainings import Training


class Engine(Protocol):
    """What carries out trainings."""

    def train(self, trainings: Sequence[Training]) -> list[str]:
        """Carry out the trainings that have not finished, and return one sentence per training that failed.

        Raises:
            BusyError: If another process is training one of them.
        """


class InTurn:
    """One training after the other in the listed order, which completes fold by fold.

    Args:
        commands: The runner of commands.
    """

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def train(self, trainings: Sequence[Training]) -> list[str]:
        """Train one after the other; see :class:`Engine`."""
        failed = []
        for number, training in enumerate(trainings, 1):
            state = "done already" if training.is_done else "training"
            self._commands.say(f"{number} of {len(trainings)}: {training.name}: {state}")
            try:
                training.carry_out(self._commands)
            except BusyError:
                raise
            except RuntimeError as error:
                failed.append(f"{training.name} failed: {error}.")
                self._commands.say(failed[-1])
        return failed


class Together:
    """Several trainings at once on this machine, the longest first.

    Args:
        launcher: The launcher.
        out: The folder of the study.
        commands: The runner of commands, which shows the progress.
    """

    def __init__(self, launcher: LocalLauncher, out: Path, commands: Commands) -> None:
        self._launcher, self._out, self._commands = launcher, out, commands

    def train(self, trainings: Sequence[Training]) -> list[str]:
        """Train several at once; see :class:`Engine`."""
        board = Board(self._out, self._launcher.name)
        board.works = {training.log: training for training in longest_first(trainings, self._out / "logs")}
        board.forget_ended(())
        board.write()
        return Watcher(board, self._launcher, self._commands.say).watch()


class Nothing:
    """No training: what has not finished counts as failed, with the reason that its job gave.

    Args:
        out: The folder of the study.
    """

    def __init__(self, out: Path) -> None:
        self._out = out

    def train(self, trainings: Sequence[Training]) -> list[str]:
        """Train nothing; see :class:`Engine`."""
        failed = []
        for training in trainings:
            if not training.is_done:
                outcome = Outcome.read(self._out, training.log)
                why = None if outcome is None else outcome.failure
                failed.append(f"{training.name} {'is not trained' if why is None else f'failed: {why}'}.")
        return failed


def longest_first(trainings: Sequence[Training], logs: Path) -> list[Training]:
    """Return trainings in the order that finishes early: those with the most left first, else as they are listed.

    An epoch of a training that has no log yet takes as long as the mean of the others.

    Args:
        trainings: The trainings.
        logs: The folder of their logs.
    """
    times = {one.log: epoch_times(logs / f"{one.log}.log") for one in trainings}
    known = [found.seconds for found in times.values() if found is not None and found.seconds is not None]
    usual = sum(known) / len(known) if known else 1.0

    def left(one: Training) -> float:
        found = times[one.log]
        seconds = usual if found is None or found.seconds is None else found.seconds
        return seconds * ((one.epochs or 0) - (0 if found is None else found.epoch))

    return sorted(trainings, key=left, reverse=True)
