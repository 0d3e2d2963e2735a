"""Stock commands, in processes of their own; in a dry run forked from one that has imported nnU-Net."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.commands import ForkedCommand, run_command
from tests.conftest import Workspace
from tests.gpu.place import Place
from tests.killing import kill_group

LONGEST = 240.0  # seconds a command may take


def environment(place: Place, workspace: Workspace) -> dict[str, str]:
    """Return the variables of a command; on a GPU, nnU-Net compiles as it does by default."""
    return {**workspace.environment(), "nnUNet_compile": place.size("t", "f")}


def run(place: Place, words: Sequence[str], variables: Mapping[str, str]) -> str:
    """Run a command to its end, require that it succeeds, and return what it printed."""
    if place.fake:
        done = run_command(words, variables, LONGEST)
    else:
        done = subprocess.run(
            [_program(words[0]), *words[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            timeout=LONGEST,
        )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def kill_when_there(place: Place, words: Sequence[str], variables: Mapping[str, str], file: Path, log: Path) -> None:
    """Run a command, and kill it with all its processes once it has written a file."""
    with log.open("w") as output:
        if place.fake:
            command = ForkedCommand(words, env=variables)
        else:
            command = subprocess.Popen(
                [_program(words[0]), *words[1:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        stop = time.monotonic() + LONGEST
        while not file.is_file() and time.monotonic() < stop:
            time.sleep(0.01)
        if place.fake:
            command.terminate()
        else:
            kill_group(command.pid)
        command.wait()
    assert file.is_file(), f"{' '.join(words)} has not written {file} within {LONGEST:g} s: {log.read_text()[-3000:]}"


def _program(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name
