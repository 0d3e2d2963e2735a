"""Installed commands, nnU-Net's and ours, in processes forked from one that has imported nnU-Net.

Importing it takes ten seconds, again in every process it starts. Here a command begins within a fraction of a second,
and so do its own processes; it is the command's function with its arguments, variables, output and exit code.
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
import segment_anything

from tests.killing import kill_group, run_killed, start
from tests.small_networks import tiny_sam

SIZE_OF_TINY_SAM = "SIZE_OF_TINY_SAM"  # a variable: voxels of its images' sides
LONGEST = 600.0  # seconds a command may take


def run_command(
    words: Sequence[str], environment: Mapping[str, str] | None = None, limit: float = LONGEST
) -> subprocess.CompletedProcess[str]:
    """A command to its end; what it prints to either stream is in ``stdout``.

    Args:
        words: The command with its arguments.
        environment: Its variables instead of this process's.
        limit: It is killed, with all it has started, after so many seconds; its exit code is below 0 then.
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
    """Of :class:`subprocess.Popen` what running a command needs: its output in a pipe, and its end.

    Args:
        words: A command of an installed package with its arguments, possibly below a supervisor.
        env: Its variables instead of this process's.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None, **_: Any) -> None:
        names = [Path(word).name for word in words]
        first = next(i for i, name in enumerate(names) if entry_points(group="console_scripts", name=name))
        self._folder = tempfile.mkdtemp()
        path = Path(self._folder) / "output"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._process = start(path, env, entry_point, (names[first], *words[first + 1 :]))
        os.set_blocking(reader, True)  # now that somebody writes
        self.stdout = open(reader, errors="replace")  # noqa: SIM115
        self.stdin = io.StringIO()

    def wait(self) -> int:
        """Its exit code; whoever has closed its input has ended it."""
        if self.stdin.closed:
            self.terminate()
        self._process.join()
        kill_group(self._process.pid)
        self.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._process.exitcode

    def terminate(self) -> None:
        """End it and what it has started."""
        kill_group(self._process.pid)


def entry_point(name: str, *words: str) -> int | None:
    """What an installed command does; processes it wants to be spawned are forked, and it knows a tiny SAM."""
    _fork_always()
    size = int(os.environ.get(SIZE_OF_TINY_SAM, 64))
    segment_anything.sam_model_registry["tiny"] = functools.partial(tiny_sam, image_size=size)
    sys.argv = [name, *words]
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()()


def printed_command(printed: str, name: str, **given: Any) -> list[str]:
    """The words of a printed command, with what a person puts in the place of its words in capitals."""
    (line,) = (line for line in printed.splitlines() if name in line)
    words = shlex.split(line[line.index(name) :].split(" for ")[0])
    assert not [word for word in words if word.isupper() and word not in given], words
    return [str(given.get(word, word)) for word in words]


def plan_and_preprocess(number: int, *configurations: str) -> None:
    """What nnUNetv2_plan_and_preprocess --verify_dataset_integrity calls, with a smaller sample of intensities.

    nnU-Net draws a hundred million voxels of every channel, however small the data set is.
    """
    variables = {**os.environ, "nnUNet_n_proc_DA": "1"}  # its planner divides by it
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        ended = run_killed(_plan_and_preprocess, number, configurations, log=log, environment=variables)
    assert ended.exit_code == 0, ended.output


def _plan_and_preprocess(number: int, configurations: Sequence[str]) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiments,
        preprocess,
    )

    class FewSamples(DatasetFingerprintExtractor):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.num_foreground_voxels_for_intensitystats = 1e5

    _fork_always()
    extract_fingerprint_dataset(number, FewSamples, 1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([number])
    preprocess([number], configurations=configurations, num_processes=(1,), show_progress_bar=False)


def _fork_always() -> None:
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork" if method == "spawn" else method)
    multiprocessing.cpu_count = lambda: 1


@pytest.fixture
def forked_commands(monkeypatch):
    """``nnunet_kd``'s own commands start nnU-Net's like this."""
    changed = SimpleNamespace(Popen=ForkedCommand, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("nnunet_kd.study.commands.subprocess", changed)
