"""Studies by a real Slurm of one node."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from nnunet_kd.cli import main
from nnunet_kd.study.board import Board
from tests.commands import ForkedCommand
from tests.conftest import SHORT
from tests.full_disk import PAGE
from tests.slurm.cluster import wait_for
from tests.workflow.stopped_distillation import stopped_after

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SLURM = ("--launcher", "slurm", "--slurm-time", "30")


def words_of(workspace, out, *words):
    folder = str(workspace.root / out)
    return ["compare", "-d", "598", "-o", folder, "-device", "cpu", "-np", "1", "-p", "tiny", *words]


def compare(workspace, out, *words):
    return main(words_of(workspace, out, *words))


def taken_weights(workspace):
    """Return the final weights of every student by the name of its folder, and remove its results."""
    weights = {}
    for folder in sorted(workspace.results.glob("*tiny*")):
        content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
        weights[folder.name] = content["network_weights"]
        shutil.rmtree(folder)
    return weights


def assert_same(ones, others):
    assert list(ones) == list(others)
    for name, weights in ones.items():
        assert all(torch.equal(value, others[name][key]) for key, value in weights.items()), name


def test_students_two_at_a_time_after_their_teacher(workspace, cluster, capsys, forked_commands):
    """Metrics and weights are those of one training after the other, however often the study is looked at."""
    workspace.plans("tiny_taught", training=SHORT)
    teacher = {"trainer": "nnUNetTrainerNoKD", "plans": "tiny_taught"}
    student = {"source_plans": "tiny_taught", "reduction": 2}
    workspace.plans("tiny", training=SHORT, teacher=teacher, student=student, method={})
    words = ("-m", "NoKD", "LogitsKD", "--train-teachers")
    assert compare(workspace, "in_turn", *words) == 0
    expected = taken_weights(workspace)
    study = workspace.root / "study"

    assert compare(workspace, "study", *words, *SLURM, "--submit-only") == 0
    assert "3 trainings submitted; the jobs of this study go on without this command" in capsys.readouterr().out
    wait_for(lambda: list(cluster.queue().values()).count("RUNNING") == 2, "two jobs run")
    assert compare(workspace, "study", *words) == 1
    assert f"4 jobs of the study in {study} are in Slurm's queue: add --launcher slurm" in capsys.readouterr().err
    assert compare(workspace, "study", "--status") == 0
    table = capsys.readouterr().out
    assert "4 tasks: 2 running, 2 waiting" in table and "Dependency" in table, table

    command = ["nnunet_kd", *words_of(workspace, "study", *words, *SLURM)]
    closed = ForkedCommand(command, env=os.environ)
    assert any("4 tasks: " in line for line in closed.stdout)
    closed.terminate()
    closed.wait()
    other = ForkedCommand(command, env=os.environ)
    assert compare(workspace, "study", *words, *SLURM) == 0
    seen = capsys.readouterr().out
    assert "nothing new to train" in seen and "4 tasks: 4 finished" in seen and "| LogitsKD " in seen
    assert "4 tasks: 4 finished" in other.stdout.read() and other.wait() == 0

    jobs = Board.read(study).jobs
    assert compare(workspace, "study", *words, *SLURM) == 0  # everything has finished: the report is shown again
    assert "| LogitsKD " in capsys.readouterr().out
    again = Board.read(study).jobs
    assert again.items() < jobs.items() and len(again) == 3  # without the teacher, which is no longer missing
    for name in ("metrics.csv", "metrics.json"):
        assert (study / name).read_bytes() == (workspace.root / "in_turn" / name).read_bytes()
    assert len(expected) == 3
    assert_same(expected, taken_weights(workspace))


class Paused:
    """The only training of a study, which is paused while something happens to its job.

    Args:
        study: The folder of the study.
    """

    def __init__(self, study):
        (self._log,) = (log for log in Board.read(study).works if log.startswith("train"))
        self._path = study / "logs" / f"{self._log}.log"
        self._study = study

    @property
    def job(self):
        """Its job."""
        return Board.read(self._study).jobs[self._log]

    @property
    def printed(self):
        """What its job has printed."""
        return (self._study / "jobs" / f"{self.job}_0_log.out").read_text()

    def pause_in_epoch(self, number):
        """Wait until an epoch begins, and pause the training."""
        line = f": Epoch {number}"
        wait_for(lambda: self._path.is_file() and line in self._path.read_text(), f"epoch {number} has begun")
        self._signal(signal.SIGSTOP)

    def go_on(self):
        """Let the training go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        here = os.fsencode(f"nnUNet_results={self._study.parent}/")  # not a training of another test
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                trains = any(word.endswith(b"bin/nnUNetv2_train") for word in words[:2])
                if trains and any(variable.startswith(here) for variable in variables):
                    os.kill(int(entry.name), number)


def test_a_training_goes_on_whatever_ends_its_job(workspace, cluster, capsys, forked_commands):
    """Its time limit, the end of its node and scancel end the job; the weights are those of one run."""
    workspace.plans("tiny", training={**SHORT, "num_epochs": 5})
    assert compare(workspace, "in_turn", "-m", "NoKD") == 0
    expected = taken_weights(workspace)
    study = workspace.root / "study"
    assert compare(workspace, "study", "-m", "NoKD", *SLURM, "--submit-only") == 0
    training = Paused(study)
    job = training.job

    training.pause_in_epoch(1)
    minutes = cluster.run("squeue", "-h", "-j", job, "-o", "%M").split(":")
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes[-2]) + 2}")
    wait_for(lambda: "the time of this job is over: the next one goes on" in training.printed, "Slurm warns")
    training.go_on()
    wait_for(lambda: cluster.queue().get(job) == "PENDING", "the job waits again")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    cluster.start_now(job)

    training.pause_in_epoch(2)
    cluster.kill_node()
    cluster.start_node()
    wait_for(lambda: cluster.queue().get(job) == "PENDING", "the job of the dead node waits again")
    cluster.start_now(job)

    training.pause_in_epoch(3)
    assert compare(workspace, "study", "--cancel") == 0
    assert "2 jobs cancelled; finished epochs are kept" in capsys.readouterr().out
    wait_for(lambda: not cluster.queue(), "the jobs have ended")
    assert training.printed.count(" --c\n") == 2
    assert compare(workspace, "study", "--status") == 0
    assert "1 failed" in capsys.readouterr().out

    assert compare(workspace, "study", "-m", "NoKD", *SLURM) == 0
    assert training.job != job and training.printed.count(" --c\n") == 1
    assert_same(expected, taken_weights(workspace))


def test_parts_of_soft_labels(workspace, cluster, capsys):
    """Two jobs write what one command writes; given again, the command finds that nothing is missing."""
    words = ["soft-labels", "-d", "598", "-device", "cpu", "--teacher", "-f", "0"]
    assert main([*words, "--name", "whole"]) == 0
    assert main([*words, *SLURM, "-num_parts", "2"]) == 0
    assert "2 tasks: 2 finished" in capsys.readouterr().out
    whole, parts = (workspace.preprocessed / f"nnUNetPlans_3d_fullres_soft_{name}" for name in ("whole", "nnunet"))
    assert (workspace.preprocessed / f"jobs_of_{parts.name}" / "logs" / "part_1_of_2.log").is_file()
    assert len(list(whole.iterdir())) == 13  # two files for each case, and the manifest
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in parts.iterdir()
    }
    assert main([*words, *SLURM, "-num_parts", "2"]) == 1
    assert "has 6 of 6 cases already: compute the others with --continue" in capsys.readouterr().err


def test_distill_sends_the_segmentations_of_its_teacher(workspace, cluster, forked_commands):
    """Two jobs write what one command writes."""
    images = shutil.copytree(workspace.raw / "imagesTr", workspace.root / "images")
    words = ["distill", "-m", str(workspace.teacher), "-i", str(images), "--disable_tta", "-np", "1", "-device", "cpu"]
    stores = []
    for name, more in (("alone", ()), ("sent", (*SLURM, "--jobs", "2"))):
        out = workspace.root / name
        with stopped_after(2):  # preprocessing and soft labels
            assert main([*words, "-o", str(out), *more]) == 130
        (store,) = (path.parent for path in out.rglob("manifest.json"))
        stores.append({path.name: path.read_bytes() for path in store.iterdir()})
    assert len([*out.rglob("logs/part_*_of_2.log")]) == 2
    assert stores[0] == stores[1] and len(stores[0]) > 2


def test_mistakes_are_one_sentence_each(workspace, cluster, capsys, monkeypatch, small_disk):
    workspace.plans("tiny", training=SHORT)
    study = workspace.root / "study"
    assert compare(workspace, "study", "-m", "NoKD", *SLURM, "--slurm-partition", "moon") == 1
    assert capsys.readouterr().err == "nnunet_kd: Slurm refuses the jobs: invalid partition specified: moon\n"
    assert not list(workspace.results.glob("*tiny*")) and not cluster.queue()
    disk = small_disk(2 * PAGE)
    assert compare(workspace, disk / "study", "-m", "NoKD", *SLURM) == 1
    error = capsys.readouterr().err
    assert error.startswith("nnunet_kd: cannot write ") and error.endswith("the disk is full\n") and not cluster.queue()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nothing")
        assert compare(workspace, "study", "-m", "NoKD", *SLURM) == 1
    error = capsys.readouterr().err
    assert error.startswith("nnunet_kd: --launcher slurm needs Slurm's commands, but sbatch") and error.count("\n") == 1
    assert not (study / "logs").exists()
