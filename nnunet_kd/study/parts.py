"""The parts of one command as several jobs: each computes some of the cases, as ``-num_parts`` divides them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_kd.storage.writing import check_writable_folder
from nnunet_kd.study.board import Board, Watcher
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.jobs import Outcome
from nnunet_kd.study.launchers import Launcher
from nnunet_kd.study.trainings import Command


def jobs_folder(target: Path) -> Path:
    """Return the folder, beside ``target``, of the jobs and logs of a command that writes into ``target``."""
    return target.absolute().parent / f"jobs_of_{target.name}"


def launch_parts(out: Path, words: Sequence[str], again: Sequence[str], parts: int, launcher: Launcher) -> None:
    """Send the parts of a command as jobs, and wait for all of them.

    Parts that are in the queue already are not sent again, and neither are those that have ended well.

    Args:
        out: The folder for jobs and logs.
        words: The command, which runs without a launcher if it gets ``--launcher none`` as well.
        again: What to add if a job starts for the second time.
        parts: The number of parts.
        launcher: Where the jobs run.

    Raises:
        RuntimeError: If a part fails; the message names every one that did.
    """
    check_writable_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    before = Board.read(out)
    live = {} if before is None or before.launcher != launcher.name else launcher.live(before.jobs.values())
    board = Board(out, launcher.name)
    for part in range(parts):
        log = f"part_{part}_of_{parts}"
        its = (*words, "--launcher", "none", "-num_parts", str(parts), "-part_id", str(part))
        work = Command(f"part {part + 1} of {parts}", log, its, again=tuple(again))
        board.works[log] = work
        old = None if before is None else before.jobs.get(log)
        outcome = Outcome.read(out, log)
        ended_well = outcome is not None and outcome.failure is None and before and before.works.get(log) == work
        if old is not None and (old in live or ended_well):
            board.jobs[log] = old
        else:
            Outcome.path(out, log).unlink(missing_ok=True)
    watcher = Watcher(board, launcher, Commands(out / "logs").say)
    if launcher.stays:
        watcher.submit([log for log in board.works if log not in board.jobs])
    failed = watcher.watch()
    if failed:
        raise RuntimeError(" ".join(failed))
