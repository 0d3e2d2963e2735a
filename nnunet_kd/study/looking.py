"""Look at the jobs of a study from outside, and end them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from nnunet_kd.storage.processes import BusyError
from nnunet_kd.study.board import Board, summary
from nnunet_kd.study.launchers import Live
from nnunet_kd.study.slurm import SlurmLauncher


def print_status(out: Path) -> None:
    """Print a table of the works of a study.

    Raises:
        FileNotFoundError: If no job has been submitted there.
        RuntimeError: If Slurm does not answer.
    """
    board = _board(out)
    live = _live(board)
    states = {log: board.state(log, live) for log in board.works}
    print(f"{summary(states.values())}\n{board.table(states)}")


def cancel_jobs(out: Path) -> None:
    """End the jobs of a study that wait or run.

    Raises:
        FileNotFoundError: If no job has been submitted there.
        ValueError: If they are no jobs of Slurm.
        RuntimeError: If Slurm does not answer.
    """
    board = _board(out)
    if board.launcher != SlurmLauncher.name:
        raise ValueError("the trainings of --launcher local end with the command that started them: end that one")
    live = _live(board)
    SlurmLauncher(out).cancel(live)
    print(f"{len(live)} jobs cancelled; finished epochs are kept, and the same command without --cancel goes on")


def refuse_beside_jobs(out: Path) -> None:
    """Refuse to train here what Slurm's queue will train, too.

    Raises:
        BusyError: If jobs of the study wait or run.
    """
    board = Board.read(out)
    if board is None or board.launcher != SlurmLauncher.name or shutil.which("squeue") is None:
        return  # a study that was copied from a cluster has no jobs here
    live = _live(board)
    if live:
        raise BusyError(
            f"{len(live)} jobs of the study in {out} are in Slurm's queue: add --launcher slurm to watch them, or "
            "--cancel to end them first"
        )


def _board(out: Path) -> Board:
    board = Board.read(out)
    if board is None:
        raise FileNotFoundError(f"{Board.path(out)} does not exist: no --launcher has begun to work in this folder")
    return board


def _live(board: Board) -> Mapping[str, Live]:
    """Return the jobs of a board that wait or run."""
    if board.launcher == SlurmLauncher.name:
        return SlurmLauncher(board.out).live(board.jobs.values())
    return {job: Live("running") for log, job in board.jobs.items() if not board.works[log].is_idle}
