"""Processes end with their parent, even if it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_kd.storage.processes import BusyError, FileLock, holder_of, process_limits
from nnunet_kd.storage.writing import DiskFullError
from nnunet_kd.study.commands import Commands
from tests.killing import is_alive
from tests.locks import held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

POOL = """
import os, pathlib, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from nnunet_kd.storage.processes import end_with_parent

def work(folder):
    pathlib.Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(60)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        list(pool.map(work, [sys.argv[1]] * 4))
"""
COMMAND = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
for pid in (child.pid, os.getpid()):
    pathlib.Path(sys.argv[1], f"{pid}.pid").touch()
"""
OUTER = """
import pathlib, sys
from nnunet_kd.study.commands import Commands
from nnunet_kd.storage.processes import BusyError, FileLock, holder_of
Commands(pathlib.Path(sys.argv[1])).run("log", "python", "-c", sys.argv[2], sys.argv[1])
"""


def wait_for(condition):
    stop = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < stop, "it did not happen in a minute"
        time.sleep(0.05)


def processes(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


def gone(folder):
    return not any(map(is_alive, processes(folder)))


def test_the_workers_of_a_pool_end(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    wait_for(lambda: len(processes(tmp_path)) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(tmp_path))
    assert len(processes(tmp_path)) == 2  # no queued task has begun


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_and_its_children_end(tmp_path, way):
    words = [sys.executable, "-c", OUTER, str(tmp_path), COMMAND + "time.sleep(60)"]
    parent = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(processes(tmp_path)) == 2)
    parent.send_signal(way)
    parent.wait()
    wait_for(lambda: gone(tmp_path))


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os._exit(0)"])
def test_children_do_not_outlive_their_command(tmp_path, end):
    """A child would keep the output open, and nnunet_kd would wait for it."""
    start = time.monotonic()
    commands = Commands(tmp_path)
    words = ("log", "python", "-c", COMMAND + end, str(tmp_path))
    if end == "os._exit(0)":
        commands.run(*words)
    else:
        with pytest.raises(RuntimeError, match=r"python failed \(.*its output is in"):
            commands.run(*words)
    assert time.monotonic() - start < 30
    wait_for(lambda: gone(tmp_path))


def test_a_command_that_fails_on_a_full_disk(tmp_path):
    """No further command is started."""
    script = "raise SystemExit('OSError: [Errno 28] No space left on device')"
    with pytest.raises(DiskFullError, match="python failed .the disk is full.; its output is in"):
        Commands(tmp_path).run("log", "python", "-c", script)


def test_no_space_for_the_log(small_disk):
    folder: Path = small_disk(2**16)
    script = "print('line' * 2**16)"
    with pytest.raises(DiskFullError, match=f"cannot write {folder}/log.log: the disk is full"):
        Commands(folder).run("log", "python", "-c", script)


VARIABLES = ("nnUNet_def_n_proc", "nnUNet_n_proc_DA")


def test_commands_start_no_more_processes_than_there_are_cores(tmp_path, monkeypatch):
    """A variable is not set if the user has set it, or if nnU-Net's default is not larger."""
    show = f"import os; print([os.environ.get(name) for name in {VARIABLES}])"

    def shown():
        Commands(tmp_path).run("log", "python", "-c", show)
        return (tmp_path / "log.log").read_text().splitlines()[-1]

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nnunet_kd.storage.processes.USUAL_PROCESSES", {"nnUNet_def_n_proc": 8, "nnUNet_n_proc_DA": 2})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
    assert shown() == "['2', None]"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert shown() == "['1', '1']"
    monkeypatch.setenv("nnUNet_def_n_proc", "5")
    assert shown() == "['5', '1']"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {*range(64)})
    assert process_limits() == {}


def test_the_usual_numbers_are_those_of_nnunet():
    from nnunet_kd.storage.processes import USUAL_PROCESSES

    show = "from nnunetv2 import configuration as c; print(c.default_num_processes, c.default_n_proc_DA)"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, env=environment)
    assert done.stdout.split()[-2:] == [str(value) for value in USUAL_PROCESSES.values()]


def test_only_one_process_holds_a_lock(tmp_path):
    path = tmp_path / "a.lock"
    assert holder_of(path) is None and not path.exists()
    with held(path) as other:
        assert holder_of(path) == str(other)
        with pytest.raises(BusyError, match=f"^{other}$"):
            FileLock(path)
    assert path.exists() and holder_of(path) is None
    FileLock(path).free()
    assert not path.exists()


def test_a_lock_is_waited_for(tmp_path):
    path, waits = tmp_path / "a.lock", []
    with held(path) as other:
        with pytest.raises(BusyError, match=f"^{other}$"):
            FileLock.within(0.0, path, waits.append)
        assert waits == []
        with pytest.raises(BusyError, match=f"^{other}$"):
            FileLock.within(0.8, path, waits.append)
        assert waits == [str(other)]

        def end(process):
            os.kill(int(process), signal.SIGKILL)

        FileLock.within(60.0, path, end).free()
    assert not path.exists()
