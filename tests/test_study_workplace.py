"""The command of benchmarks/study, and its work in nnU-Net's folders."""

import shutil
import sys
from dataclasses import replace
from functools import cache, partial

import pytest

from benchmarks.study import parts
from benchmarks.study.__main__ import main as study
from benchmarks.study.parts import METHODS, PARTS, Part
from benchmarks.study.record import STUDENT, Record
from benchmarks.study.workplace import FASTER, Workplace
from nnunet_kd.cli import main
from nnunet_kd.evaluation.measure import measure
from nnunet_kd.study.runs import TEACHER
from tests.commands import run_command
from tests.conftest import FOLDERS, SHORT


def tiny_data(workspace):
    return parts.Data(workspace.dataset, 8, "16 x 16 x 16", {0: SHORT}, SHORT, "_")


def teachers_of(workspace, folder):
    shutil.copytree(workspace.teacher, folder / "teachers" / workspace.dataset / workspace.teacher.name)
    return folder / "teachers"


def in_process(_, *words):
    """Run a command of the study in this process or a fork."""
    code = main(words[1:]) if words[0] == "nnunet_kd" else run_command(words).returncode
    assert code == 0, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--raw", "."], "--raw and --work must be given together"),
        (["--raw", ".", "--work", "work"], "the folder Dataset"),
        (["--parts", "brats"], "invalid choice: 'brats'"),
    ],
)
def test_wrong_arguments_make_nothing(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as ended:
        study()
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_teacher_and_student_are_measured_in_turn(workspace, tmp_path, monkeypatch):
    part = Part("Tiny", "Tiny", "tiny", 4, {"NoKD": METHODS["NoKD"]})
    monkeypatch.setitem(PARTS, "tiny", part)
    monkeypatch.setitem(parts.DATA, "tiny", tiny_data(workspace))
    order, seconds = [], iter((3.0, 1.0, 9.0, 5.0, 4.0, 2.0))
    once = cache(partial(measure, cases=1))

    def watched(checkpoint, *words):
        found = once(checkpoint, *words)
        order.append((checkpoint, found))
        return replace(found, seconds=next(seconds))

    monkeypatch.setattr("benchmarks.study.workplace.measure", watched)
    monkeypatch.setattr(Workplace, "command", in_process)
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    workplace = Workplace(workspace.root / "nnUNet_raw", tmp_path / "work", teachers_of(workspace, tmp_path), "cpu")
    record = Record("tiny", tmp_path)
    workplace.measure_costs("tiny", record)
    teacher, student = (record.costs()[who] for who in (TEACHER, STUDENT))
    assert (teacher.seconds, student.seconds) == (4.0, 2.0) and len(order) == 6
    assert [path for path, _ in order] == [order[0][0], order[1][0]] * 3
    assert teacher.network == order[0][1].network and student.network == order[1][1].network
    assert student.network.parameters < teacher.network.parameters / 8 and student.passes == teacher.passes
    workplace.measure_costs("tiny", record)  # already measured
    assert len(order) == 6


@pytest.mark.slow
def test_the_study_runs_and_continues(workspace, tmp_path, monkeypatch, forked_commands):
    """A study of two rows with the workspace's teacher; a second run has nothing to do."""
    data = tiny_data(workspace)
    part = Part("Tiny", "Tiny", "tiny", 4, {name: METHODS[name] for name in ("NoKD", "DCD")}, seeds=(3,))
    monkeypatch.setitem(PARTS, "tiny", part)
    monkeypatch.setitem(parts.DATA, "tiny", data)
    for name, value in {**workspace.environment(), **FASTER}.items():
        monkeypatch.setenv(name, value)

    monkeypatch.setattr(Workplace, "command", in_process)
    teachers = teachers_of(workspace, tmp_path)
    workplace = Workplace(workspace.root / "nnUNet_raw", tmp_path / "work", teachers, "cpu")
    workplace.compare("tiny", 3, Record("tiny", tmp_path))
    record = Record("tiny", tmp_path)
    assert record.whole_seeds() == [3] and record.teacher["epochs"] == 1 and len(record.all_rows()) == 3 * 2 * 2
    assert {row.seed for row in record.all_rows()} == {None, 3}
    monkeypatch.setattr(Workplace, "command", lambda *words: pytest.fail(f"runs {words}"))
    workplace.compare("tiny", 3, record)
