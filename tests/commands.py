"""Run installed commands, nnU-Net's and ours, in processes forked from one that has imported nnU-Net.

The import takes ten seconds, and as long again in every process that a command starts. Here a command and its own
processes begin within a fraction of a second. What runs is the command's function, with its arguments, variables,
output and exit code.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.killing import kill_group, run_killed, start

SIZE_OF_TINY_SAM = "SIZE_OF_TINY_SAM"  # environment variable: side length of its images in voxels
SEEN_CORES = "SEEN_CORES"  # environment variable: the cores that a training sees; rounding depends on them
WORKING_FOLDER = "WORKING_FOLDER"  # environment variable: the folder in which a command runs, instead of this process's
LONGEST = 600.0  # seconds after which a command is killed


def run_command(
    words: Sequence[str], environment: Mapping[str, str] | None = None, limit: float = LONGEST
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ``stdout`` of the result has what it prints to either stream.

    Args:
        words: The command with its arguments.
        environment: The command's variables instead of this process's.
        limit: The number of seconds after which the command and all it has started are killed; its exit code is then
            below 0.
    """
    command = ForkedCommand(words, env=environment)
    killer = threading.Timer(limit, command.terminate)
    killer.start()
    try:
        output = command.stdout.read()
        return subprocess.CompletedProcess(words, command.wait(), output, "")
    finally:
        killer.cancel()


class ForkedCommand:
    """The part of :class:`subprocess.Popen` that running a command needs: its output in a pipe, and its end.

    Args:
        words: A command of an installed package with its arguments, possibly below a supervisor.
        env: The command's variables instead of this process's.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None, **_: Any) -> None:
        names = [Path(word).name for word in words]
        first = next(i for i, name in enumerate(names) if entry_points(group="console_scripts", name=name))
        self._folder = tempfile.mkdtemp()
        path = Path(self._folder) / "output"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._process = start(path, env, self.entry, (names[first], *words[first + 1 :]))
        os.set_blocking(reader, True)  # the writer is there now
        self.stdout = open(reader, errors="replace")  # noqa: SIM115
        self.stdin = io.StringIO()

    @staticmethod
    def entry(name: str, *words: str) -> int | None:
        """Call the command's function in the process that was forked for it."""
        return entry_point(name, *words)

    def wait(self) -> int:
        """Wait for the end, and return the exit code; a command whose input was closed is ended first."""
        if self.stdin.closed:
            self.terminate()
        self._process.join()
        kill_group(self._process.pid)
        self.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._process.exitcode

    def terminate(self) -> None:
        """End the command and everything it has started."""
        kill_group(self._process.pid)


def entry_point(name: str, *words: str) -> int | None:
    """Call the function of an installed command in a process that was forked for it.

    The command knows a tiny SAM, its own processes are forked, not spawned, it draws few intensities, and its trainings
    leave a tiny picture in the place of their curves, which take longer to plot than an epoch takes here.
    """
    import segment_anything

    from tests.small_networks import tiny_sam

    os.chdir(os.environ.get(WORKING_FOLDER, "."))
    _see_cores(int(os.environ.get(SEEN_CORES, 1)) if name == "nnUNetv2_train" else 1)
    _draw_few_intensities()
    _plot_nothing()
    size = int(os.environ.get(SIZE_OF_TINY_SAM, 64))
    segment_anything.sam_model_registry["tiny"] = functools.partial(tiny_sam, image_size=size)
    sys.argv = [name, *words]
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()()


def printed_command(printed: str, name: str, **given: Any) -> list[str]:
    """Split a printed command into words, with its capitalised words replaced as a person would replace them."""
    (line,) = (line for line in printed.splitlines() if name in line)
    words = shlex.split(line[line.index(name) :].split(" for ")[0])
    assert not [word for word in words if word.isupper() and word not in given], words
    return [str(given.get(word, word)) for word in words]


def plan_and_preprocess(number: int, *configurations: str) -> None:
    """Do what nnUNetv2_plan_and_preprocess --verify_dataset_integrity does, with a smaller sample of intensities."""
    variables = {**os.environ, "nnUNet_n_proc_DA": "1"}  # nnU-Net's planner divides by it
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        ended = run_killed(_plan_and_preprocess, number, configurations, log=log, environment=variables)
    assert ended.exit_code == 0, ended.output


def _plan_and_preprocess(number: int, configurations: Sequence[str]) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiments,
        preprocess,
    )

    _see_cores(1)
    _draw_few_intensities()
    extract_fingerprint_dataset(number, num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([number])
    preprocess([number], configurations=configurations, num_processes=(1,), show_progress_bar=False)


def _draw_few_intensities() -> None:
    """Let nnU-Net's fingerprint draw 100,000 voxels per channel, not 100 million however small the data set is."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    initialize = DatasetFingerprintExtractor.__init__

    def initialize_with_few(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **options)
        self.num_foreground_voxels_for_intensitystats = 1e5

    DatasetFingerprintExtractor.__init__ = initialize_with_few


def draw_nothing(_logger: Any, folder: str) -> None:
    """Write a black ``progress.png`` in the place of nnU-Net's plot."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(Path(folder, "progress.png"))


def _plot_nothing() -> None:
    """Let trainings write ``progress.png``, which nnU-Net's export asks for, without plotting."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    import nnunet_kd.training.trainer as training

    LocalLogger.plot_progress_png = draw_nothing
    training.append_terms = lambda *_: None


def _see_cores(count: int) -> None:
    """Let nnU-Net see this many cores, as many threads as it computes with.

    A prediction that computed with several would wait forever for its preprocessing: the forks of a process that has
    used OpenMP's threads cannot use them.
    """
    multiprocessing.cpu_count = lambda: count


@pytest.fixture
def forked_commands(monkeypatch):
    """Let the commands of ``nnunet_kd`` start nnU-Net's commands as forks."""
    changed = SimpleNamespace(Popen=ForkedCommand, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("nnunet_kd.study.commands.subprocess", changed)
