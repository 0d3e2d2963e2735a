"""Studies with several trainings at once on this machine, and their plan."""

import json
import re
import shlex
import shutil

import pytest

from nnunet_kd.cli import main
from nnunet_kd.study.board import Board
from nnunet_kd.study.epoch_times import in_words
from tests.conftest import SHORT

TINY = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1}


def compare(workspace, *words):
    return main(["compare", "-d", "598", "-o", str(workspace.root / "study"), "-device", "cpu", "-np", "1", *words])


@pytest.mark.slow
def test_two_at_once_after_their_teacher(workspace, capsys, monkeypatch, forked_commands):
    """A method fails, and the others go on; the teacher that they lack is trained before them."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    workspace.plans("taught", training=TINY)
    teacher = {"trainer": "nnUNetTrainerNoKD", "plans": "taught"}
    workspace.plans(
        "tiny", training=TINY, teacher=teacher, student={"source_plans": "taught", "reduction": 2}, method={}
    )
    rows = workspace.root / "rows.json"
    rows.write_text(json.dumps({"wrong": {"trainer": "DCD", "method": {"weight": -1}}}))
    words = ("-p", "tiny", "-m", "LogitsKD", "--rows", str(rows))
    assert compare(workspace, *words, "--launcher", "local", "--jobs", "2") == 1
    assert "there is no teacher in" in capsys.readouterr().err
    assert compare(workspace, *words, "--launcher", "local", "--jobs", "2", "--train-teachers") == 1
    shown = capsys.readouterr().out
    assert "1 task: 1 running" in shown and "teacher nnUNetTrainerNoKD (fold 0, plans taught): finished" in shown
    assert "2 tasks: 2 running" in shown and "2 tasks: 1 finished, 1 failed" in shown
    report = (workspace.root / "study" / "report.md").read_text()
    assert (
        "**wrong (fold 0, plans tiny_wrong) failed: nnUNetv2_train failed (nnunet_kd.method: weight must be" in report
    )
    assert all(f"| {method} " in report for method in ("teacher", "LogitsKD"))
    assert len(Board.read(workspace.root / "study").jobs) == 2

    (workspace.root / "study" / "report.md").unlink()
    assert compare(workspace, *words, "--report-only") == 0
    again = (workspace.root / "study" / "report.md").read_text()
    assert "**wrong (fold 0, plans tiny_wrong) failed: nnUNetv2_train failed (nnunet_kd.method: weight must be" in again


def test_a_plan_has_commands_hours_and_disk_space(workspace, capsys, monkeypatch, forked_commands):
    """Hours come from logs, or from a probe that leaves nothing behind."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    schedule = {"num_epochs": 100, "num_iterations_per_epoch": 20, "num_val_iterations_per_epoch": 4}
    workspace.plans("tiny", training=schedule, teacher={"plans": "nnUNetPlans"})
    (workspace.results / "nnUNetTrainerNoKD__tiny_seed0__3d_fullres" / "fold_1").mkdir(parents=True)
    for method, message in (("Foo", "finds no trainer nnUNetTrainerFoo"), ("IFVD", "")):
        assert compare(workspace, "-p", "tiny", "-m", "NoKD", method, "--plan") == (1 if message else 0)
        assert message in capsys.readouterr().err
    before = sorted(workspace.preprocessed.iterdir()), sorted(workspace.results.rglob("*"))
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD", "--seeds", "0", "1", "--plan") == 0
    printed = capsys.readouterr().out
    assert "not measured: 4; add --probe" in printed
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "--seeds", "0", "1", "--plan", "--probe") == 0
    probed = capsys.readouterr().out
    assert probed.count("(probe of 20 steps)") == 2 and probed.count("$ nnUNetv2_train") == 1
    (log,) = (workspace.root / "study" / "logs").glob("probe_*.log")
    seconds = float(re.findall(r"Epoch time: ([\d.]+) s", log.read_text())[1])
    assert f"100 epochs left, {in_words(100 * 2 * seconds)} (probe" in probed  # it had half of an epoch's steps
    assert (sorted(workspace.preprocessed.iterdir()), sorted(workspace.results.rglob("*"))) == before

    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("    nnUNetv2_train")]
    assert len(commands) == 4
    assert commands[0][3:] == ["0", "-tr", "nnUNetTrainerNoKD", "-p", "tiny_seed0", "-device", "cpu"]
    fold = workspace.results / "nnUNetTrainerNoKD__tiny_seed1__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    lines = "".join(f"2026-11-30 19:00:00.1: Epoch {n}\n2026-11-30 19:00:00.1: Epoch time: 36.0 s\n" for n in range(50))
    (fold / "training_log_2026_11_30_19_00_00.txt").write_text(lines)
    shutil.copy(workspace.teacher / "fold_0" / "checkpoint_final.pth", fold / "checkpoint_latest.pth")
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "--seeds", "0", "1", "--plan", "--jobs", "2") == 1
    assert "--jobs needs --launcher" in capsys.readouterr().err
    words = ("-p", "tiny", "-m", "NoKD", "--seeds", "0", "1", "--plan", "--launcher", "local", "--jobs", "2")
    assert compare(workspace, *words) == 0
    printed = capsys.readouterr().out
    # 100 epochs of 36 s, and the 51 that the other has left.
    assert "100 epochs left, 60 min (log of tiny_seed1 fold_0)" in printed and "51 epochs left, 31 min (own" in printed
    assert "measured: 2, which need 1.51 hours of a device, 60 min on 2" in printed
    assert float(re.search(r"checkpoints need ([\d.]+) GiB", printed)[1]) < 0.1
