"""Jobs on a cluster with Slurm, submitted by submitit.

Live jobs are read from ``squeue``, which every cluster has and which knows the time left; submitit asks ``sacct``,
which needs a database that not every cluster has.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_kd.storage.writing import naming_full_disk
from nnunet_kd.study.jobs import Job
from nnunet_kd.study.launchers import Launcher, Live, require_submitit
from nnunet_kd.study.trainings import Work

_TIMEOUTS = 100  # times that a job whose time is over may go on in another
_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_FORMAT = "%i|%T|%L|%r|%N"  # job, state, time left, reason, nodes


@dataclass(frozen=True)
class SlurmOptions:
    """What each job asks Slurm for.

    Attributes:
        partition: The partition; ``None`` for the cluster's own.
        minutes: The time limit; a training that needs more goes on in another job.
        gpus: The number of GPUs.
        cpus: The number of cores; ``None`` for the cluster's own.
        at_once: The number of jobs that may run at the same time.
        notice: The seconds before the end of its time in which a training is stopped.
        additional: Other options of ``sbatch`` by name.
    """

    partition: str | None = None
    minutes: int = 24 * 60
    gpus: int = 1
    cpus: int | None = None
    at_once: int = 256
    notice: int = 90
    additional: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """Return them as submitit's Slurm executor takes them."""
        wanted: dict[str, Any] = {
            "job_name": "nnunet_kd",
            "time": self.minutes,
            "array_parallelism": self.at_once,
            "signal_delay_s": self.notice,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **self.additional},
        }
        if self.partition is not None:
            wanted["partition"] = self.partition
        if self.gpus:
            wanted["gpus_per_node"] = self.gpus
        if self.cpus is not None:
            wanted |= {
                "cpus_per_task": self.cpus,
                "srun_args": [f"--cpus-per-task={self.cpus}"],
            }  # srun ignores sbatch's
        return wanted


class SlurmLauncher(Launcher):
    """One Slurm job per work; works of the same kind are one array.

    Args:
        out: The folder of the study, which the nodes share.
        options: What each job asks for; ``None`` if none will be submitted.

    Raises:
        ImportError: If submitit is not installed.
        RuntimeError: If Slurm is not installed.
    """

    name = "slurm"
    stays = True
    poll = 10.0
    patience = 60.0

    def __init__(self, out: Path, options: SlurmOptions | None = None) -> None:
        missing = [name for name in _COMMANDS if shutil.which(name) is None]
        if missing:
            raise RuntimeError(
                f"--launcher slurm needs Slurm's commands, but {', '.join(missing)} cannot be found here"
            )
        require_submitit()
        self._out = out
        self._options = options

    def room(self, busy: int) -> int:
        """Return a number without a limit: Slurm has a queue."""
        return 10**6

    def submit(self, works: Sequence[Work], after: Sequence[str] = (), even_if_failed: bool = False) -> list[str]:
        """Submit the works as one array.

        Raises:
            RuntimeError: If Slurm refuses them, with its reason.
            DiskFullError: If the disk of the folder is full.
        """
        import submitit
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError

        assert self._options is not None
        folder = self._out / "jobs"
        parameters = self._options.parameters()
        if after:
            parameters["dependency"] = f"{'afterany' if even_if_failed else 'afterok'}:{':'.join(after)}"
        with naming_full_disk(folder / "submission"):
            executor = submitit.SlurmExecutor(folder, max_num_timeout=_TIMEOUTS)
            executor.update_parameters(**parameters)
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what its error says
                    jobs = executor.submit_array([Job(work, self._out) for work in works])
            except (FailedSubmissionError, UncompletedJobError, subprocess.CalledProcessError) as error:
                raise RuntimeError(f"Slurm refuses the jobs: {_reason(error)}") from None
        return [job.job_id for job in jobs]

    def live(self, jobs: Iterable[str]) -> Mapping[str, Live]:
        """Return those of the jobs that are in Slurm's queue."""
        wanted = set(jobs)
        if not wanted:
            return {}
        printed = _run("squeue", "--array", "--noheader", "--user", getpass.getuser(), "--format", _FORMAT)
        found = {}
        for line in printed.splitlines():
            name, state, left, reason, nodes = line.strip().split("|")
            if name not in wanted:
                continue
            if state in ("PENDING", "REQUEUED", "SUSPENDED"):
                found[name] = Live("waiting", "" if reason in ("None", "") else reason)
            else:
                limit = "" if left in ("UNLIMITED", "INVALID", "NOT_SET") else f", its job has {left} left"
                found[name] = Live("running", f"{nodes}{limit}")
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Tell Slurm to end the jobs; Slurm asks the trainings to stop, and kills them half a minute later."""
        names = list(jobs)
        if names:
            _run("scancel", *names)


def _run(*words: str) -> str:
    """Run one of Slurm's commands, and return what it prints.

    Raises:
        RuntimeError: If it fails, with its reason.
    """
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"Slurm does not answer: {_reason(error)}") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Slurm does not answer: {words[0]} took more than two minutes") from None


def _reason(error: Exception) -> str:
    """Return the first sentence of what Slurm says."""
    said = str(getattr(error, "stderr", "") or error)
    lines = re.findall(r"^(?:sbatch|srun|squeue|scancel|slurm\w*): (?:error: )?(.+)$", said, re.MULTILINE)
    return (lines[0] if lines else said.strip().splitlines()[-1]).rstrip(".")


def minutes_of(text: str) -> int:
    """Return a time limit in minutes from Slurm's notation: ``90``, ``24:00:00`` or ``2-12:00:00``.

    Raises:
        ValueError: If the text is no such time.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise ValueError(f"a time is MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, got {text}")
    days, first, second, third = found.groups()
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = int(first), int(second or 0), int(third or 0)
    elif third is not None:
        hours, minutes, seconds = int(first), int(second), int(third)
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, int(first), int(second or 0)
    whole = (int(days or 0) * 24 + hours) * 60 + minutes + (1 if seconds else 0)
    if whole < 1:
        raise ValueError(f"a time limit must be at least one minute, got {text}")
    return whole
