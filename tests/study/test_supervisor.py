"""The program between a command and its parent: the command ends with it, and Slurm's warnings do not end it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = (
    "import sys; from nnunet_kd.study import supervisor; supervisor.GRACE = 0.5; sys.exit(supervisor.supervise({}))"
)
STUBBORN = 'trap "" TERM; echo $$; for second in $(seq 600); do sleep 1; done'


def supervised(*words):
    program = [sys.executable, "-c", PROGRAM.format(list(words))]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def runs(number):
    """Whether a process runs; one that has ended stays listed until its parent asks how."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    stop = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.05)


@pytest.mark.parametrize("end", [lambda one: one.stdin.close(), subprocess.Popen.terminate], ids=["parent", "itself"])
def test_a_command_that_ignores_sigterm_is_killed(end):
    with supervised("bash", "-c", STUBBORN) as supervisor:
        command = int(supervisor.stdout.readline())
        end(supervisor)
        wait_until(lambda: not runs(command))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_warnings_of_slurm_do_not_end_it(number):
    with supervised("bash", "-c", "echo begun; sleep 1; exit 3") as supervisor:
        assert supervisor.stdout.readline() == "begun\n"
        supervisor.send_signal(number)
        assert supervisor.wait(60) == 3
