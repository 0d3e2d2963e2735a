"""Jobs of submitit on this machine, and what a watcher says of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_kd.study.board import Board, State, Watcher, summary
from nnunet_kd.study.engines import longest_first
from nnunet_kd.study.epoch_times import EpochTimes, epoch_times, in_words
from nnunet_kd.study.jobs import Outcome
from nnunet_kd.study.launchers import Launcher, LocalLauncher
from nnunet_kd.study.looking import print_status
from nnunet_kd.study.slurm import minutes_of
from nnunet_kd.study.trainings import Command, Training, work_of


def command(name, *words):
    return Command(name, name.replace(" ", "_"), words)


def board_of(out, works):
    board = Board(out, "local")
    board.works = {work.log: work for work in works}
    return board


def test_as_many_jobs_at_once_as_devices_and_failures_are_named(tmp_path, capsys, monkeypatch):
    """Each sees its own GPU and cores; the third starts when one of them is free, although the first has failed."""
    monkeypatch.setattr("nnunet_kd.study.launchers.os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(LocalLauncher, "poll", 0.1)
    when = 'echo $CUDA_VISIBLE_DEVICES; taskset -cp $$ | grep -o "[^ ]*$"; date +%s.%N; sleep 2; date +%s.%N'
    works = [
        command("wrong", "bash", "-c", f"{when}; echo no teacher >&2; exit 3"),
        *(command(name, "bash", "-c", when) for name in ("first", "second")),
    ]
    board = board_of(tmp_path, works)
    failed = Watcher(board, LocalLauncher(tmp_path, ["4", "MIG-7"], 1), print).watch()
    assert failed == [f"wrong failed: bash failed (no teacher); its output is in {tmp_path}/logs/wrong.log."]
    printed = {work.log: (tmp_path / "logs" / f"{work.log}.log").read_text().split() for work in works}
    devices = [printed[log][0] for log in printed]
    assert sorted(devices[:2]) == ["4", "MIG-7"] and devices[2] in ("4", "MIG-7")
    assert {tuple(printed[log][:2]) for log in printed} == {("4", "0"), ("MIG-7", "1")}
    begun, ended = ({log: float(printed[log][at]) for log in printed} for at in (2, 3))
    assert begun["first"] < ended["wrong"] and begun["wrong"] < ended["first"]
    assert begun["second"] > min(ended["wrong"], ended["first"])
    shown = capsys.readouterr().out
    assert "3 tasks: 2 running, 1 not submitted" in shown and "3 tasks: 2 finished, 1 failed" in shown
    again = Board.read(tmp_path)
    assert again.works == board.works and again.jobs == board.jobs
    print_status(tmp_path)
    assert "bash failed (no teacher)" in capsys.readouterr().out


class SharedDisk(Launcher):
    """Jobs that end at once on another machine, whose files are seen here after several looks."""

    name, stays, poll, patience = "shared", True, 0.0, 60.0

    def __init__(self, out, looks=4):
        self.out, self.looks, self.cancelled = out, looks, []

    def room(self, busy):
        return 1

    def submit(self, works, after=(), even_if_failed=False):
        self.logs = [work.log for work in works]
        return [f"job {log}" for log in self.logs]

    def live(self, jobs):
        self.looks -= 1
        if not self.looks:
            Outcome(None).write(self.out, self.logs[0])
        return {}

    def cancel(self, jobs):
        self.cancelled += jobs


def test_a_job_is_lost_only_if_its_files_do_not_appear_in_time(tmp_path, monkeypatch):
    def watch(folder, looks):
        return Watcher(board_of(folder, [command("far", "true")]), SharedDisk(folder, looks), lambda _: None).watch()

    (tmp_path / "late").mkdir()
    assert watch(tmp_path / "late", 4) == []
    monkeypatch.setattr(SharedDisk, "patience", 0.2)
    (tmp_path / "never").mkdir()
    (said,) = watch(tmp_path / "never", -1)
    assert said.startswith("far was lost: its job job far ended without a word")


def test_jobs_that_nobody_would_know_of_are_cancelled(tmp_path, monkeypatch):
    launcher, board = SharedDisk(tmp_path), board_of(tmp_path, [command("far", "true")])

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "write", full)
    with pytest.raises(OSError, match="No space left"):
        Watcher(board, launcher, lambda _: None).submit(["far"])
    assert launcher.cancelled == ["job far"]


def test_jobs_that_end_with_their_command_are_cancelled_when_it_is_interrupted(tmp_path, monkeypatch):
    launcher, board = SharedDisk(tmp_path), board_of(tmp_path, [command("near", "true")])

    def interrupted(_):
        raise KeyboardInterrupt

    for stays in (True, False):
        monkeypatch.setattr(launcher, "stays", stays)
        board.jobs = {"near": "job near"}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(launcher, "live", interrupted)
            Watcher(board, launcher, lambda _: None).watch()
        assert launcher.cancelled == ([] if stays else ["job near"])


WATCH = """
import pathlib, sys
from tests.study.test_launchers import board_of, command
from nnunet_kd.study.board import Watcher
from nnunet_kd.study.launchers import LocalLauncher
out = pathlib.Path(sys.argv[1])
board = board_of(out, [command("long", "bash", "-c", "echo $$ > $0; sleep 600", str(out / "number"))])
Watcher(board, LocalLauncher(out, (), 1), print).watch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_local_jobs_end_with_the_command_that_started_them(tmp_path, number):
    parent = subprocess.Popen([sys.executable, "-c", WATCH, str(tmp_path)], stderr=subprocess.DEVNULL)
    path, stop = tmp_path / "number", time.monotonic() + 180
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < stop
        time.sleep(0.1)
    job = int(path.read_text())
    os.kill(job, 0)
    parent.send_signal(number)
    parent.wait(180)
    stop = time.monotonic() + 180
    while os.path.exists(f"/proc/{job}"):
        assert time.monotonic() < stop
        time.sleep(0.1)
    assert Outcome.read(tmp_path, "long") is None


def training_of(tmp_path, name, epochs):
    return Training(name, f"train_{name}", ("nnUNetv2_train", name), tmp_path / name, tmp_path / name / "lock", epochs)


def write_log(tmp_path, name, epoch, seconds):
    lines = [f"2026-11-30 19:00:00.1: Epoch {n}\n2026-11-30 19:00:00.1: Epoch time: {seconds} s" for n in range(epoch)]
    (tmp_path / "logs").mkdir(exist_ok=True)
    (tmp_path / "logs" / f"train_{name}.log").write_text("\n".join([*lines, f"2026-11-30 19:00:00.1: Epoch {epoch}\n"]))


def test_the_longest_training_starts_first(tmp_path):
    """A new training of 100 epochs takes the mean of the others, (30 + 10) / 2 seconds an epoch."""
    works = [training_of(tmp_path, name, epochs) for name, epochs in (("short", 10), ("new", 100), ("begun", 100))]
    write_log(tmp_path, "begun", 20, 30.0)
    write_log(tmp_path, "short", 2, 10.0)
    assert [one.name for one in longest_first(works, tmp_path / "logs")] == ["begun", "new", "short"]
    assert [one.name for one in longest_first(works, tmp_path)] == ["new", "begun", "short"]  # no log at all


def test_a_table_says_how_far_trainings_are(tmp_path):
    works = [training_of(tmp_path, name, 100) for name in ("a", "b")]
    write_log(tmp_path, "a", 40, 60.0)
    board = board_of(tmp_path, works)
    board.jobs = {"train_a": "7_0", "train_b": "7_1"}
    board.write()
    board = Board.read(tmp_path)
    assert list(board.works.values()) == works
    states = {"train_a": State("running", "node3"), "train_b": board.state("train_b", {})}
    assert states["train_b"].word == "lost" and "its job 7_1 ended without a word" in states["train_b"].note
    lines = board.table(states).splitlines()
    assert lines[1].split() == ["a", "running", "7_0", "41", "of", "100", "60", "min", "node3"]
    assert summary(states.values()) == "2 tasks: 1 running, 1 lost"
    board.forget_ended({"7_0"})
    assert board.jobs == {"train_a": "7_0"} and board.state("train_b", {}) == State("not submitted")
    Board.path(tmp_path).write_text('{"launcher": "slurm"}')
    with pytest.raises(ValueError, match="jobs.json does not list the jobs of a study: remove it"):
        Board.read(tmp_path)


def test_works_survive_json(tmp_path):
    for work in (training_of(tmp_path, "a", 3), Command("b", "b", ("x", "y"), ("--continue",))):
        assert work_of(work.described()) == work


def test_epochs_of_a_log(tmp_path):
    write_log(tmp_path, "a", 3, 2.5)
    times = epoch_times(tmp_path / "logs" / "train_a.log")
    assert times == EpochTimes(3, 2.5) and times.left(10) == 17.5
    assert epoch_times(tmp_path / "nothing") is None
    assert [in_words(seconds) for seconds in (45, 720, 12600, 190000)] == ["45 s", "12 min", "3.5 h", "2.2 days"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("24:00:00", 1440), ("1:30:30", 91), ("2-12", 3600), ("1-0:5:0", 1445)],
)
def test_times_as_slurm_writes_them(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(("text", "message"), [("1 day", "got 1 day"), ("0", "at least one minute"), ("", "got ")])
def test_other_times_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        minutes_of(text)
