"""What a job of submitit does: carry out one training or command, stop it in time, and write how it ended.

Nothing here imports nnU-Net or submitit, so that a job starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.trainings import Work

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        failure: The sentence that says why it failed; ``None`` if it did not.
    """

    failure: str | None

    @staticmethod
    def path(out: Path, log: str) -> Path:
        """Return the file of the outcome; ``log`` is the name of the work's log file."""
        return out / "jobs" / f"{log}.json"

    def write(self, out: Path, log: str) -> None:
        """Write the outcome."""
        write_whole(self.path(out, log), json.dumps({"failure": self.failure}))

    @classmethod
    def read(cls, out: Path, log: str) -> Outcome | None:
        """Return the outcome of a work, or ``None`` if no job has ended yet."""
        try:
            content = read_json(cls.path(out, log))
            return cls(content["failure"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Job:
    """A function without arguments that submitit calls in the job, with the hook that it calls before a time-out.

    Args:
        work: What the job does.
        out: The folder of the study; logs are in ``out/logs``, the files of the job in ``out/jobs``.
        variables: Environment variables of the work.
        cores: The cores that it may use; empty for all.
        parent: The number of the process on this machine with which the job ends; ``None`` if it outlives that.
    """

    def __init__(
        self,
        work: Work,
        out: Path,
        variables: Mapping[str, str] | None = None,
        cores: Collection[int] = (),
        parent: int | None = None,
    ) -> None:
        self.work, self.out = work, out
        self.variables, self.cores = dict(variables or {}), frozenset(cores)
        self.parent = parent
        self._commands: Commands | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_commands": None}

    def __call__(self) -> None:
        """Carry out the work and write its outcome.

        Raises:
            RuntimeError: If the work fails, so that jobs that depend on this one do not start.
        """
        Outcome.path(self.out, self.work.log).unlink(missing_ok=True)
        try:
            self._work()
        except Exception as error:
            expected = isinstance(error, (RuntimeError, OSError, ValueError))
            why = str(error) if expected else f"{type(error).__name__}: {error}"
            Outcome(why).write(self.out, self.work.log)
            raise RuntimeError(why) from error
        Outcome(None).write(self.out, self.work.log)

    def _work(self) -> None:
        os.environ.update(self.variables)
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.parent is not None:
            _end_with(self.parent)
        self._commands = Commands(self.out / "logs")
        self.work.carry_out_in_job(self._commands)

    def checkpoint(self) -> DelayedSubmission:
        """Stop the work before its time is over, and return the job that goes on with it; submitit calls this.

        A training saves its last finished epoch when it is stopped, and the next job resumes it with ``--c``.
        """
        from submitit.core.utils import DelayedSubmission

        if self._commands is not None:
            self._commands.say("the time of this job is over: the next one goes on")
            self._commands.stop()
        return DelayedSubmission(self)


def _end_with(parent: int) -> None:
    """Interrupt this process as Ctrl-C does when another one has ended, even by a kill."""

    def watch() -> None:
        while _is_alive(parent):
            time.sleep(1)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return True
