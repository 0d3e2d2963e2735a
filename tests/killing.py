"""Functions run in processes that are killed, at a time or at a place.

A process is forked from one that has imported what takes long already, and begins within a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PRELOADED = (
    "pytest",
    "tqdm",
    "matplotlib.figure",
    "segment_anything",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunet_kd.cli",
    "nnunet_kd.datasets.conversion",
    "nnunet_kd.datasets.table",
    "nnunet_kd.study.comparison",
    "nnunet_kd.teachers.sources",
    "nnunet_kd.training.trainer",
)
SLOW = 120.0  # seconds, in which the first process has imported all that

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        finished: Whether it came to its own end.
        exit_code: What the function returned, 1 where it raised; below 0 the signal that killed it.
        seconds: From the function's beginning.
        output: All it printed.
    """

    finished: bool
    exit_code: int
    seconds: float
    output: str


def run_killed(
    function: Callable[..., int | None],
    *arguments: Any,
    log: Path,
    after: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a function in a process of its own, and kill it with all processes of its group.

    Args:
        function: Of a module, so that its name says what it is; what it returns is the exit code.
        arguments: Its arguments.
        log: What it prints is appended to this file.
        after: So many seconds after it began; ``None``: it runs to its end.
        environment: Its variables instead of this process's.
    """
    earlier = log.stat().st_size if log.is_file() else 0
    process = start(log, environment, function, arguments)
    begun = time.perf_counter()
    try:
        process.join(after)
        seconds = time.perf_counter() - begun
    finally:  # also what a function that has finished left behind
        kill_group(process.pid)
        process.join()
    with log.open("rb") as file:
        file.seek(earlier)
        output = file.read().decode(errors="replace")
    return Ended(process.exitcode >= 0, process.exitcode, seconds, output)


def start(
    log: Path, environment: Mapping[str, str] | None, function: Callable[..., int | None], arguments: Sequence[Any]
) -> Any:
    """The process of :func:`run_killed`, in which the function has begun."""
    context = preloaded()
    begun, begins = context.Pipe(duplex=False)
    variables = dict(os.environ if environment is None else environment)
    process = context.Process(target=_run, args=(begins, log, variables, function, tuple(arguments)))
    process.start()
    begins.close()
    if not begun.poll(SLOW):
        process.kill()
        raise TimeoutError(f"no process began within {SLOW:g} seconds")
    return process


def times_of_all_phases(count: int, longest: float, seed: int) -> list[float]:
    """Random times, one in each of so many equal parts of the longest, in random order."""
    generator = random.Random(seed)
    times = [longest * (number + generator.random()) / count for number in range(count)]
    generator.shuffle(times)
    return times


def killed_at_rename(number: int, afterwards: bool, function: Callable[..., int | None], *arguments: Any) -> int | None:
    """Run a function; when it renames or replaces a file or folder for the given time, the process is killed.

    Args:
        number: From 0.
        afterwards: Right after it, not right before.
        function: What is run.
        arguments: Its arguments.
    """
    left = iter(range(number))

    def watched(name: str) -> Callable[..., None]:
        original = getattr(os, name)

        def rename(*paths: Any, **options: Any) -> None:
            last = next(left, None) is None
            if afterwards or not last:
                original(*paths, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        return rename

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, watched(name))
        return function(*arguments)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_alone(name: str, value: str, seconds: float = 30.0) -> None:
    """Until no program runs that was started with this variable; where ``/proc`` says so."""
    wanted = f"{name}={value}".encode()
    stop = time.monotonic() + seconds
    while running := [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if wanted in _variables(path)]:
        assert time.monotonic() < stop, f"still running: {running}"
        time.sleep(0.05)


def _variables(path: Path) -> set[bytes]:
    try:
        return set(path.read_bytes().split(b"\0"))
    except OSError:
        return set()


@cache
def preloaded() -> Any:
    """The context of processes that are forked from the one that has imported all that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _run(
    begins: Any, log: Path, variables: dict[str, str], function: Callable[..., int | None], arguments: Any
) -> None:
    """In the new process."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # before a traceback, as where Python ends by itself
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # the method of this process would be handed on
    sys.modules["__main__"] = ModuleType("__main__")  # else processes of its own would import pytest
    import torch

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read before
    begins.send(None)
    begins.close()
    sys.exit(function(*arguments))


def kill_group(leader: int) -> None:
    """A process that has a group of its own, and all in that."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
