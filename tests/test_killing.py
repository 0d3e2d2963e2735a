"""Tests of the tests' own tools: a process is killed when it should be, with its whole group."""

import os
import signal
import subprocess
import time

from tests.commands import run_command
from tests.killing import is_alive, killed_at_rename, needs_fork, run_killed, times_of_all_phases

pytestmark = needs_fork


def quick(status):
    print("quick in", os.environ["PLACE"], flush=True)
    return status


def slow(marker):
    child = subprocess.Popen(["sleep", "60"])
    marker.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)


def two_files(folder):
    for name in ("one", "two"):
        (folder / "new").write_text(name)
        os.replace(folder / "new", folder / name)
    return 0


def test_a_finished_function_gives_its_exit_code(tmp_path):
    log = tmp_path / "log"
    for status in (0, 3):
        ended = run_killed(quick, status, log=log, after=30, environment={"PLACE": "a test"})
        assert (ended.finished, ended.exit_code, ended.output) == (True, status, "quick in a test\n")
    ended = run_killed(quick, 0, log=log, environment={})
    assert ended.exit_code == 1 and "KeyError: 'PLACE'" in ended.output


def test_a_kill_includes_children(tmp_path):
    ended = run_killed(slow, tmp_path / "pids", log=tmp_path / "log", after=1)
    assert (ended.finished, ended.exit_code) == (False, -9) and 1 <= ended.seconds < 10
    time.sleep(0.2)
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_alive(int(pid))


def test_kills_at_a_rename(tmp_path):
    for number, afterwards, left in (
        (0, False, {"new": "one"}),
        (0, True, {"one": "one"}),
        (1, False, {"one": "one", "new": "two"}),
        (1, True, {"one": "one", "two": "two"}),
    ):
        folder = tmp_path / f"{number}_{afterwards}"
        folder.mkdir()
        ended = run_killed(killed_at_rename, number, afterwards, two_files, folder, log=tmp_path / "log")
        assert ended.exit_code == -9
        assert {path.name: path.read_text() for path in folder.iterdir()} == left
    assert run_killed(killed_at_rename, 2, False, two_files, folder, log=tmp_path / "log").finished


def test_times_cover_all_phases_and_repeat():
    times = times_of_all_phases(20, 4.0, seed=0)
    assert times == times_of_all_phases(20, 4.0, seed=0) != sorted(times)
    assert [int(time * 5) for time in sorted(times)] == list(range(20))


def test_a_command_that_takes_too_long_is_killed():
    """Without the limit a hanging command would hang the test."""
    ended = run_command(["nnunet_kd", "--help"], limit=0.0)
    assert ended.returncode == -signal.SIGKILL
