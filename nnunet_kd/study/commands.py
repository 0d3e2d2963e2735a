"""Run nnU-Net's own commands, show their epochs as progress, and log everything they print."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_kd.storage.processes import process_limits
from nnunet_kd.storage.writing import DiskFullError, naming_full_disk
from nnunet_kd.study import supervisor
from nnunet_kd.study.progress import Progress


class Commands:
    """A runner of commands, one after the other, which reports progress with the elapsed time.

    Args:
        logs: The folder of the log files.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.started = time.monotonic()
        self._process: subprocess.Popen[str] | None = None

    @property
    def minutes(self) -> float:
        """The minutes since the runner was created."""
        return (time.monotonic() - self.started) / 60

    def say(self, text: str) -> None:
        """Print a line of progress with the elapsed time."""
        elapsed = int(time.monotonic() - self.started)
        print(f"[{elapsed // 60}:{elapsed % 60:02d}] {text}", flush=True)

    def run(
        self,
        log: str,
        *words: str,
        epochs: int | None = None,
        variables: Mapping[str, str] | None = None,
        until: Callable[[str], bool] | None = None,
    ) -> None:
        """Run one command, which ends with all its processes when this process ends, even by a kill.

        The command starts at most one process per core, unless nnU-Net's variables set another number.

        Args:
            log: The name of the log file without ``.log``; the output is appended to an older file.
            words: The command and its arguments.
            epochs: The number of epochs that the command will train, for the progress.
            variables: Environment variables that it gets beside those of this process.
            until: A function that gets every line and returns whether the command has done enough and is stopped.

        Raises:
            FileNotFoundError: If the command is not installed.
            RuntimeError: If the command fails; the message has its last line and the log file.
            DiskFullError: If it fails because the disk is full.
        """
        program = Path(sys.executable).parent / words[0]
        found = str(program) if program.is_file() else shutil.which(words[0])
        if found is None:
            raise FileNotFoundError(f"{words[0]} is not installed beside {sys.executable}")
        self.say("$ " + " ".join(words))
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{log}.log"
        last, progress = "", Progress(epochs)
        supervised = [sys.executable, "-I", "-S", supervisor.__file__] if os.name == "posix" else []
        with naming_full_disk(path), path.open("a", buffering=1) as file:  # line by line, for users who follow the log
            process = subprocess.Popen(
                [*supervised, found, *words[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                # Buffered output would report about fifteen epochs at once.
                env={**os.environ, **process_limits(), "PYTHONUNBUFFERED": "1", **(variables or {})},
            )
            assert process.stdin is not None and process.stdout is not None
            self._process = process
            try:
                for line in process.stdout:
                    file.write(line)
                    last = line.strip() or last
                    shown = progress.line(line)
                    if shown is not None:
                        self.say(f"    {shown}")
                    if until is not None and until(line):
                        self.stop()
                        return
                status = process.wait()
            except BaseException:
                process.stdin.close()  # the supervisor ends the command
                if not supervised:
                    process.terminate()
                process.wait()
                raise
            finally:
                self._process = None
        if status:
            raise _failure(words, last, path)

    def stop(self) -> None:
        """Stop the command that is running, if any, and wait for its end; for signal handlers."""
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # the supervisor ends the command
            process.wait()


def _failure(words: Sequence[str], last: str, log: Path) -> DiskFullError | RuntimeError:
    """Return the error that says why a command failed.

    Args:
        words: The command and its arguments.
        last: The last line that it printed.
        log: The file with everything that it printed.
    """
    ours = words[0] == "nnunet_kd"
    why = last.removeprefix("nnunet_kd: ")
    full = "No space left on device" in why or "the disk is full" in why
    if full and "cannot write" not in why:
        why = "the disk is full"
    kind = DiskFullError if full else RuntimeError
    return kind(f"{' '.join(words[: 2 if ours else 1])} failed ({why}); its output is in {log}")
