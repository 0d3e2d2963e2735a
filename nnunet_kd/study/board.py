"""The jobs of a study: which there are, how far they are, and one who watches them.

``jobs.json`` in the study's folder says which job does what. Everything else is found anew each time: the launcher
tells which jobs live, the results which trainings have finished. So a watcher can be closed and opened again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.epoch_times import epoch_times, in_words
from nnunet_kd.study.jobs import Outcome
from nnunet_kd.study.launchers import Launcher, Live
from nnunet_kd.study.trainings import Training, Work, work_of

ENDED = ("finished", "failed", "lost")
NEW = "not submitted"


@dataclass(frozen=True)
class State:
    """How far a work is.

    Attributes:
        word: ``"not submitted"``, ``"waiting"``, ``"running"``, ``"finished"``, ``"failed"`` or ``"lost"``.
        note: Why, where, or how long.
    """

    word: str
    note: str = ""


class Board:
    """The works of a study and their jobs.

    Args:
        out: The folder of the study.
        launcher: The name of the launcher of the jobs.
        jobs: The identifier of the job of each work, by the name of its log; ``None`` without a job.
        works: The works by the names of their logs.
    """

    def __init__(self, out: Path, launcher: str) -> None:
        self.out, self.launcher = out, launcher
        self.works: dict[str, Work] = {}
        self.jobs: dict[str, str] = {}

    @staticmethod
    def path(out: Path) -> Path:
        """Return the file in which a study's folder keeps its jobs."""
        return out / "jobs.json"

    @classmethod
    def read(cls, out: Path) -> Board | None:
        """Return the board of a study, or ``None`` if no job has been submitted in its folder.

        Raises:
            ValueError: If the file cannot be read.
        """
        path = cls.path(out)
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            board = cls(out, content["launcher"])
            for entry in content["works"]:
                work = work_of(entry["work"])
                board.works[work.log] = work
                if entry["job"] is not None:
                    board.jobs[work.log] = entry["job"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} does not list the jobs of a study: remove it; finished trainings are kept"
            ) from None
        return board

    def write(self) -> None:
        """Write the board; the file is complete or unchanged."""
        works: list[dict[str, Any]] = [
            {"work": work.described(), "job": self.jobs.get(log)} for log, work in self.works.items()
        ]
        write_whole(self.path(self.out), json.dumps({"launcher": self.launcher, "works": works}, indent=1))

    def state(self, log: str, live: Mapping[str, Live]) -> State:
        """Return how far a work is.

        Args:
            log: The name of its log.
            live: The jobs that wait or run.
        """
        work, job = self.works[log], self.jobs.get(log)
        if job is not None and job in live:
            return State(live[job].state, live[job].note)
        outcome = Outcome.read(self.out, log)
        if work.is_done or (outcome is not None and outcome.failure is None and not isinstance(work, Training)):
            return State("finished")
        if outcome is not None and outcome.failure is not None:
            return State("failed", outcome.failure)
        if job is not None:
            return State("lost", f"its job {job} ended without a word: it was cancelled, killed or never began")
        return State(NEW)

    def forget_ended(self, live: Collection[str]) -> None:
        """Forget the jobs that do not live and how they ended, so that unfinished works are submitted again."""
        for log, work in self.works.items():
            if self.jobs.get(log) not in live and not work.is_done:
                self.jobs.pop(log, None)
                Outcome.path(self.out, log).unlink(missing_ok=True)

    def table(self, states: Mapping[str, State]) -> str:
        """Return a table of all works with their states and the time left."""
        rows = [("task", "state", "job", "epoch", "left", "where or why")]
        for log, work in self.works.items():
            state = states[log]
            epoch, left = self._progress(work) if state.word in ("waiting", "running") else ("", "")
            rows.append((work.name, state.word, self.jobs.get(log, ""), epoch, left, state.note))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _progress(self, work: Work) -> tuple[str, str]:
        times = epoch_times(self.out / "logs" / f"{work.log}.log")
        if times is None or work.epochs is None:
            return "", ""
        left = times.left(work.epochs)
        return f"{times.epoch + 1} of {work.epochs}", "" if left is None else in_words(left)


def summary(states: Iterable[State]) -> str:
    """Return how many works are in each state."""
    words = [state.word for state in states]
    order = ("finished", "running", "waiting", NEW, "failed", "lost")
    counts = [f"{words.count(word)} {word}" for word in order if word in words]
    return f"{len(words)} {'task' if len(words) == 1 else 'tasks'}: {', '.join(counts)}"


class Watcher:
    """One who submits the works of a board as there is room, and tells how they go.

    Args:
        board: The board.
        launcher: Where its jobs run.
        say: The function that prints a line.
    """

    def __init__(self, board: Board, launcher: Launcher, say: Callable[[str], None]) -> None:
        self._board, self._launcher, self._say = board, launcher, say
        self._known: dict[str, State] = {}
        self._lost_since: dict[str, float] = {}

    def submit(self, logs: Sequence[str], after: Sequence[str] = (), even_if_failed: bool = False) -> None:
        """Submit works, and note their jobs at once."""
        if not logs:
            return
        works = [self._board.works[log] for log in logs]
        jobs = self._launcher.submit(works, after, even_if_failed)
        self._board.jobs.update(zip(logs, jobs, strict=True))
        try:
            self._board.write()
        except OSError:
            self._launcher.cancel(jobs)  # nobody would know of them
            raise

    def watch(self) -> list[str]:
        """Watch until all works have ended, and return one sentence per work that failed."""
        try:
            while True:
                states = self._look()
                if states is not None and all(state.word in ENDED for state in states.values()):
                    break
                time.sleep(self._launcher.poll)
        except BaseException:
            if not self._launcher.stays:
                self._launcher.cancel(self._board.jobs.values())
            raise
        said = {"failed": "failed", "lost": "was lost"}
        return [
            f"{self._board.works[log].name} {said[state.word]}: {state.note.rstrip('.')}."
            for log, state in states.items()
            if state.word in said
        ]

    def _look(self) -> dict[str, State] | None:
        """Submit what there is room for, and say what has changed; return the states, or ``None`` if unknown."""
        try:
            live = self._launcher.live(self._board.jobs.values())
        except RuntimeError as error:
            self._say(f"{error}. Asking again")
            return None
        states = {log: self._state(log, live) for log in self._board.works}
        new = [log for log, state in states.items() if state.word == NEW]
        room = self._launcher.room(len(live))
        if new and room > 0:
            self.submit(new[:room])
            live = self._launcher.live(self._board.jobs.values())
            states |= {log: self._state(log, live) for log in new[:room]}
        first = not self._known
        changed = [log for log, state in states.items() if self._known.get(log, State("")).word != state.word]
        if first:
            self._say(f"{summary(states.values())}\n{self._board.table(states)}")
        elif changed:
            for log in changed:
                note = states[log].note and f" ({states[log].note})"
                self._say(f"{self._board.works[log].name}: {states[log].word}{note}")
            self._say(summary(states.values()))
        self._known = states
        return states

    def _state(self, log: str, live: Mapping[str, Live]) -> State:
        """Return how far a work is; one that has just ended is running until its files can be seen here."""
        known = self._known.get(log)
        if known is not None and known.word == "finished":
            return known
        state = self._board.state(log, live)
        if state.word != "lost":
            self._lost_since.pop(log, None)
            return state
        since = self._lost_since.setdefault(log, time.monotonic())
        return state if time.monotonic() - since >= self._launcher.patience else replace(state, word="running")
