"""A distillation that is killed in each of its steps, compared with an undisturbed one.

``nnunet_kd distill`` runs in a process of its own, and so does each of its commands. In real life a supervisor
(:mod:`nnunet_kd.study.supervisor`) ends a command once the pipe to its parent closes. It would import nnU-Net anew for
every command, so here commands are forks, in which a thread does the same.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.commands import ForkedCommand, entry_point
from tests.killing import is_alive, kill_group, start

RUNNING = "RUNNING_COMMANDS"  # environment variable: a folder with one pipe per command, which its parent holds open
GRACE = 10.0  # seconds for a training to save its last epoch, as the supervisor gives


class SupervisedCommand(ForkedCommand):
    """A forked command that ends when its parent does, even by a kill."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None, **_: Any) -> None:
        life = Path(os.environ[RUNNING]) / f"{os.getpid()}_{time.monotonic_ns()}"
        os.mkfifo(life)
        reader = os.open(life, os.O_RDONLY | os.O_NONBLOCK)  # without it, opening the other end would wait
        held = life.open("w")
        super().__init__(words, {**(os.environ if env is None else env), "LIFE": str(life)})
        self.stdin = held
        os.close(reader)

    @staticmethod
    def entry(name: str, *words: str) -> int | None:
        """Call the command's function, and end with the parent."""
        life = Path(os.environ["LIFE"])
        unfinished = life.with_suffix(".unfinished")
        unfinished.write_text(str(os.getpid()))
        unfinished.rename(life.with_suffix(".pid"))
        reader = os.open(life, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        threading.Thread(target=_end_with, args=(reader,), daemon=True).start()
        return entry_point(name, *words)


def _end_with(reader: int) -> None:
    os.read(reader, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def distill(*words: str) -> int | None:
    """Run ``nnunet_kd distill`` in a process that was forked for it."""
    import nnunet_kd.study.commands as study

    study.subprocess = SimpleNamespace(Popen=SupervisedCommand, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    return entry_point("nnunet_kd", "distill", *words)


class KilledDistillation:
    """A distillation that can be killed.

    Args:
        words: The arguments of the command without ``-o``.
        root: The folder for everything.
        environment: The variables of the command.
    """

    def __init__(self, words: Sequence[str], root: Path, environment: Mapping[str, str]) -> None:
        self._words = list(words)
        self._root = root
        (root / "running").mkdir()
        self._environment = {**environment, RUNNING: str(root / "running")}
        self._log = root / "distill.log"

    def run(self, out: Path, step: str | None = None, after: float = 0.0) -> tuple[dict[str, float], bool, str]:
        """Run the command to its end, or kill it in one of its steps.

        Args:
            out: The folder of the distillation.
            step: The beginning of the command of a step; ``None`` lets the distillation run to its end.
            after: The number of seconds after which it is killed, counted from the beginning of the step.

        Returns:
            The seconds that each begun command took or has taken, by the beginning of its line; whether the
            distillation has ended by itself; and everything that it printed.
        """
        self._log.unlink(missing_ok=True)
        process = start(self._log, self._environment, distill, (*self._words, "-o", str(out)))
        begun: dict[str, float] = {}
        try:
            while process.is_alive():
                now = time.monotonic()
                for line in self._log.read_text().splitlines():
                    begun.setdefault(line.partition("$ ")[2], now)
                there = next((when for line, when in begun.items() if step is not None and line.startswith(step)), None)
                if there is not None and now - there >= after:
                    break
                time.sleep(0.02)
            ended = not process.is_alive()
        finally:
            kill_group(process.pid)
            process.join()
            self._wait_for_commands()
        printed = self._log.read_text()
        assert not ended or process.exitcode == 0, printed
        begun.pop("", None)
        times = [*begun.values(), time.monotonic()]
        return {line: times[i + 1] - times[i] for i, line in enumerate(begun)}, ended, printed

    def kill(self, out: Path, step: str, after: float) -> None:
        """Kill the command in one of its steps; where the step ends before, try an earlier moment from the same state.

        The arguments are those of ``run``.
        """
        before = self._root / "before_the_kill"
        out.mkdir(exist_ok=True)
        shutil.copytree(out, before, symlinks=True)
        begun, ended, printed = self.run(out, step, after)
        while ended or not list(begun)[-1].startswith(step):
            assert after > 0, printed
            after = after / 2 if after > 0.1 else 0.0
            shutil.rmtree(out)
            shutil.copytree(before, out, symlinks=True)
            begun, ended, printed = self.run(out, step, after)
        shutil.rmtree(before)

    def _wait_for_commands(self) -> None:
        """Wait for the end of all commands, which nothing tells that a new run would meet them."""
        stop = time.monotonic() + 2 * GRACE + 10
        for path in (self._root / "running").glob("*.pid"):
            while is_alive(int(path.read_text())):
                assert time.monotonic() < stop, f"a command outlives its distillation: {path}"
                time.sleep(0.02)
            path.unlink()


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in an exported model."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("checkpoint_final.pth"))
        with archive.open(name) as file:
            return torch.load(file, weights_only=False)["network_weights"]
