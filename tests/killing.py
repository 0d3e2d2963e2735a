"""Run functions in processes that are killed at a given time or a given rename.

Every process is forked from one that has already imported the slow packages, and begins within a fraction of a second.
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
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PRELOADED = (
    "pytest",
    "monai.metrics.utils",
    "tqdm",
    "matplotlib.figure",
    "segment_anything",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",  # with timm; a search for any trainer imports it
    "nnunet_kd.cli",
    "nnunet_kd.datasets.conversion",
    "nnunet_kd.datasets.table",
    "nnunet_kd.study.comparison",
    "nnunet_kd.teachers.sources",
    "nnunet_kd.training.trainer",
)
SLOW = 120.0  # seconds within which the first process has imported all of them

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        finished: Whether the process ended by itself.
        exit_code: The value that the function returned, 1 if it raised, or minus the signal that killed the process.
        seconds: The time since the function began.
        output: Everything the process printed.
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
        function: A function at the top level of a module, so that it can be pickled; it returns the exit code.
        arguments: The arguments of the function.
        log: The file to which everything printed is appended.
        after: The number of seconds after which the process is killed; ``None`` lets it run to its end.
        environment: The variables of the process instead of this process's.
    """
    earlier = log.stat().st_size if log.is_file() else 0
    process = start(log, environment, function, arguments)
    begun = time.perf_counter()
    try:
        process.join(after)
        seconds = time.perf_counter() - begun
    finally:  # a finished function can have left processes behind
        kill_group(process.pid)
        process.join()
    with log.open("rb") as file:
        file.seek(earlier)
        output = file.read().decode(errors="replace")
    return Ended(process.exitcode >= 0, process.exitcode, seconds, output)


def start(
    log: Path, environment: Mapping[str, str] | None, function: Callable[..., int | None], arguments: Sequence[Any]
) -> Any:
    """Start the process of :func:`run_killed`, and return it once the function has begun."""
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
    """Divide the longest time into ``count`` equal parts; return a random time of each, in random order."""
    generator = random.Random(seed)
    times = [longest * (number + generator.random()) / count for number in range(count)]
    generator.shuffle(times)
    return times


def killed_at_rename(number: int, afterwards: bool, function: Callable[..., int | None], *arguments: Any) -> int | None:
    """Run a function, and kill the process at one of its renames or replacements of a file or folder.

    Args:
        number: The number of the rename, counted from 0.
        afterwards: Whether to kill right after the rename instead of right before it.
        function: The function to run.
        arguments: The arguments of the function.
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
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_alone(name: str, value: str, seconds: float = 30.0) -> None:
    """Wait until no program runs that was started with this variable, as far as ``/proc`` tells."""
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
    """Return the context of processes that are forked from one that has imported the slow packages."""
    if multiprocessing.context._concrete_contexts["spawn"] is multiprocessing.get_context("fork"):
        return multiprocessing.get_context("fork")  # this process has imported them, or one before it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class PreloadedProcess(ForkServerProcess):
    """A process as of the start method ``spawn``, with this process's variables, but with the slow imports done."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._variables = dict(os.environ)  # the process that forks has those of its own start

    def run(self) -> None:
        import torch

        torch.set_num_threads(1)
        list_files_in_threads()
        os.environ.clear()
        os.environ.update(self._variables)
        super().run()


class PreloadedContext(ForkServerContext):
    """The context in which :class:`PreloadedProcess` are started."""

    Process = PreloadedProcess


def _run(
    begins: Any, log: Path, variables: dict[str, str], function: Callable[..., int | None], arguments: Any
) -> None:
    """Prepare the new process, and run the function in it."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(
        line_buffering=True
    )  # so that output precedes a traceback, as it does when Python ends normally
    os.environ.clear()
    os.environ.update(variables)
    fork_from_here()
    list_files_in_threads()
    sys.modules["__main__"] = ModuleType("__main__")  # else its own processes would import pytest
    import torch

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read earlier
    begins.send(None)
    begins.close()
    sys.exit(function(*arguments))


def fork_from_here() -> None:
    """Fork the processes that this one starts, which has the slow imports, and would inherit another method."""
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")


def list_files_in_threads() -> None:
    """Let nnU-Net list a data set's files in threads; it forks twelve processes for it, which takes half a second."""
    from multiprocessing.pool import ThreadPool

    from nnunetv2.utilities import utils

    utils.Pool = ThreadPool


def kill_group(leader: int) -> None:
    """Kill all processes of the group that a process leads."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
