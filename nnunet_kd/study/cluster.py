"""A study whose trainings and report are Slurm jobs; this process submits them and may watch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from nnunet_kd.study.board import Board, Watcher
from nnunet_kd.study.comparison import check_results, check_trainers, prepare_study, study_teachers
from nnunet_kd.study.engines import longest_first
from nnunet_kd.study.jobs import Outcome
from nnunet_kd.study.missing_teachers import missing_teachers
from nnunet_kd.study.slurm import SlurmLauncher
from nnunet_kd.study.trainings import Command, Training, Work

if TYPE_CHECKING:
    from nnunet_kd.study.runs import Run
    from nnunet_kd.study.study import Study


PATIENCE = 60.0  # seconds; a submission, or the report of a job, is done by then


class ClusterStudy:
    """A study on a cluster.

    Args:
        study: The study.
        runs: The trainings of the study.
        launcher: Slurm.
        report: The command that writes the report of what is trained.
    """

    def __init__(self, study: Study, runs: Sequence[Run], launcher: SlurmLauncher, report: Command) -> None:
        self._study, self._runs = study, runs
        self._launcher, self._report = launcher, report
        self._trainings = [study.training(run) for run in runs]
        self._board = Board(study.out, launcher.name)

    def submit(self, trust: bool, train_teachers: bool) -> None:
        """Submit everything that has not finished and has no living job, after the checks of every study.

        Args:
            trust: Allow existing results to hold code.
            train_teachers: Whether to train missing teachers first.

        Raises:
            ValueError: As :func:`~nnunet_kd.study.comparison.compare_methods`; nothing is submitted then.
            RuntimeError: If Slurm refuses the jobs.
            BusyError: If another process submits jobs of this study or trains one of its runs.
        """
        study, runs = self._study, self._runs
        needed = check_trainers(study, runs)
        missing = missing_teachers(study, runs) if train_teachers else {}
        teachers = {} if missing else study_teachers(study, runs, needed)
        with study.alone(PATIENCE):
            self._board = found = Board.read(study.out) or self._board
            known = found.jobs if found.launcher == self._launcher.name else {}
            live = self._launcher.live(known.values())
            jobs = {log: job for log, job in known.items() if job in live}
            check_results(study, [run for run in runs if self._log_of(run) not in jobs], trust)
            prepare_study(study, runs, teachers)
            before = found.works.get(self._report.log)
            self._board = Board(study.out, self._launcher.name)
            self._board.works = {log: found.works[log] for log in jobs if log != self._report.log}
            self._board.works |= self._works(missing)
            ended = {log for log, work in self._board.works.items() if work.is_done} | {self._report.log}
            self._board.jobs = {log: job for log, job in known.items() if log in jobs or log in ended}
            watcher = Watcher(self._board, self._launcher, study.commands.say)
            new = [log for log, work in self._board.works.items() if log not in jobs and not work.is_done]
            outcome = Outcome.read(study.out, self._report.log)
            reported = self._report.log in jobs or (outcome is not None and outcome.failure is None)
            renewed = bool(new) or not reported or before != self._report
            self._board.forget_ended(set(live))
            self._submit_trainings(watcher, new, missing)
            self._submit_report(watcher, renewed, live)
            waits = f"{len(new)} trainings submitted" if new else "nothing new to train"
            study.commands.say(f"{waits}; the jobs of this study go on without this command")

    def _log_of(self, run: Run) -> str:
        return self._trainings[self._runs.index(run)].log

    def _works(self, missing: dict[int, list[Training]]) -> dict[str, Work]:
        teachers = {one.log: one for some in missing.values() for one in some}
        students = longest_first(self._trainings, self._study.out / "logs")
        return {**teachers, **{one.log: one for one in students}}

    def _submit_trainings(self, watcher: Watcher, new: Sequence[str], missing: dict[int, list[Training]]) -> None:
        """Submit teachers, then one array of students for every set of teachers that they wait for."""
        teachers = {one.log for some in missing.values() for one in some}
        watcher.submit([log for log in new if log in teachers])
        groups: dict[tuple[str, ...], list[str]] = {}
        run_of = {training.log: run for run, training in zip(self._runs, self._trainings, strict=True)}
        for log in new:
            if log not in teachers:
                after = tuple(self._board.jobs[one.log] for one in missing.get(run_of[log].fold, ()))
                groups.setdefault(after if self._uses_teacher(run_of[log]) else (), []).append(log)
        for after, logs in groups.items():
            watcher.submit(logs, after)

    def _uses_teacher(self, run: Run) -> bool:
        try:
            preparation = self._study.prepared(run)
        except ValueError:  # its training will say so
            return False
        return preparation is not None and preparation.uses_teacher

    def _submit_report(self, watcher: Watcher, renewed: bool, live: Collection[str]) -> None:
        """Submit the job of the report, which waits for all others, unless it would write the same again."""
        log = self._report.log
        self._board.works[log] = self._report
        if not renewed:
            self._board.write()
            return
        old = self._board.jobs.pop(log, None)
        if old is not None and old in live:
            self._launcher.cancel([old])
        Outcome.path(self._study.out, log).unlink(missing_ok=True)
        waits_for = [job for other, job in self._board.jobs.items() if not self._board.works[other].is_done]
        watcher.submit([log], waits_for, even_if_failed=True)

    def watch(self) -> list[str]:
        """Watch the jobs until the last has ended, and return one sentence per training that failed.

        Raises:
            RuntimeError: If there is no report.
        """
        failed = Watcher(self._board, self._launcher, self._study.commands.say).watch()
        outcome = Outcome.read(self._study.out, self._report.log)
        if outcome is None or outcome.failure is not None:
            raise RuntimeError(" ".join(failed))
        print("\n" + (self._study.out / "report.md").read_text(encoding="utf-8"))
        return failed
