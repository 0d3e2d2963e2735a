"""Where the jobs of a study run: several at once on this machine, or on a cluster with Slurm. submitit starts both.

Importing this file imports neither nnU-Net nor submitit.
"""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnunet_kd.study.jobs import Job
from nnunet_kd.study.supervisor import GRACE
from nnunet_kd.study.trainings import Work

if TYPE_CHECKING:
    import submitit

_FOREVER = 60 * 24 * 365  # minutes; submitit ends a local job after two unless told otherwise


@dataclass(frozen=True)
class Live:
    """A job that waits or runs.

    Attributes:
        state: ``"waiting"`` or ``"running"``.
        note: Where it runs and until when, or why it waits.
    """

    state: str
    note: str = ""


class Launcher(ABC):
    """A place for jobs.

    Attributes:
        name: Its name in ``--launcher``.
        stays: Whether its jobs go on when this process ends.
        poll: The seconds between two looks at its jobs.
        patience: The seconds after which the files of a job that has ended are seen here; NFS shows them late.
    """

    name: ClassVar[str]
    stays: ClassVar[bool]
    poll: ClassVar[float]
    patience: ClassVar[float]

    @abstractmethod
    def room(self, busy: int) -> int:
        """Return how many jobs can be submitted now, ``busy`` of them being there already."""

    @abstractmethod
    def submit(self, works: Sequence[Work], after: Sequence[str] = (), even_if_failed: bool = False) -> list[str]:
        """Submit one job per work, and return the identifiers of the jobs.

        Args:
            works: The works; there is room for them.
            after: The jobs that must have ended first.
            even_if_failed: Whether these jobs may have failed.

        Raises:
            RuntimeError: If they cannot be submitted.
        """

    @abstractmethod
    def live(self, jobs: Iterable[str]) -> Mapping[str, Live]:
        """Return those of some jobs that wait or run.

        Raises:
            RuntimeError: If nobody answers; the jobs may live.
        """

    @abstractmethod
    def cancel(self, jobs: Iterable[str]) -> None:
        """End jobs; trainings save their last finished epoch."""


class LocalLauncher(Launcher):
    """Several jobs at once on this machine, which end with this process, by a kill, too.

    Args:
        out: The folder of the study.
        devices: The GPUs, as ``CUDA_VISIBLE_DEVICES`` names them, one for each job; empty for the CPU.
        jobs: The number of jobs at once on the CPU, which share its cores.

    Raises:
        ImportError: If submitit is not installed.
    """

    name = "local"
    stays = False
    poll = 1.0
    patience = 0.0

    def __init__(self, out: Path, devices: Sequence[str], jobs: int) -> None:
        require_submitit()
        self._out = out
        self._slots = [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{} for _ in range(jobs)]
        self._cores = _shares(len(self._slots))
        self._jobs: dict[str, tuple[submitit.Job[None], int, Work]] = {}

    def room(self, busy: int) -> int:
        """Return the number of free GPUs, or of free places on the CPU."""
        return len(self._free())

    def _free(self) -> list[int]:
        taken = {slot for job, slot, _ in self._jobs.values() if not job.done()}
        return [slot for slot in range(len(self._slots)) if slot not in taken]

    def submit(self, works: Sequence[Work], after: Sequence[str] = (), even_if_failed: bool = False) -> list[str]:
        """Start one process per work; ``after`` has ended, because the caller waits for it."""
        import submitit

        executor = submitit.LocalExecutor(self._out / "jobs")
        executor.update_parameters(timeout_min=_FOREVER, stderr_to_stdout=True)
        identifiers = []
        for work, slot in zip(works, self._free(), strict=False):
            job = executor.submit(Job(work, self._out, self._slots[slot], self._cores[slot], os.getpid()))
            self._jobs[job.job_id] = (job, slot, work)
            identifiers.append(job.job_id)
        return identifiers

    def live(self, jobs: Iterable[str]) -> Mapping[str, Live]:
        """Return the jobs of this process that have not ended."""
        return {name: Live("running", self._where(name)) for name in jobs if self._runs(name)}

    def _runs(self, name: str) -> bool:
        return name in self._jobs and not self._jobs[name][0].done()

    def _where(self, name: str) -> str:
        device = self._slots[self._jobs[name][1]].get("CUDA_VISIBLE_DEVICES")
        return socket.gethostname() if device is None else f"GPU {device}"

    def cancel(self, jobs: Iterable[str]) -> None:
        """Interrupt the jobs, and wait for their ends."""
        mine = [self._jobs[name] for name in jobs if self._runs(name)]
        for job, _, _ in mine:
            job.cancel()
        stop = time.monotonic() + 2 * GRACE
        for job, _, work in mine:
            while time.monotonic() < stop and not (job.done() and work.is_idle):
                time.sleep(0.1)


def _shares(count: int) -> list[set[int]]:
    """Return the cores of each job, in shares of equal size; empty sets if the system cannot bind processes to cores.

    nnU-Net computes with as many threads as the machine has cores, whatever the job's share is, and so rounds alike.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        return [{cores[number % len(cores)]} for number in range(count)]
    size = len(cores) // count
    return [set(cores[number * size : (number + 1) * size]) for number in range(count)]


def require_submitit() -> None:
    """Check that submitit is installed.

    Raises:
        ImportError: If it is not; the message says how to install it.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ImportError("--launcher needs submitit: pip install 'nnunet_kd[cluster]'") from None
