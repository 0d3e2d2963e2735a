"""The output of ``nnunet_kd evaluate``, and the inputs that it refuses."""

import json
import re
import shutil

import numpy as np
import pytest

from nnunet_kd.cli import main
from nnunet_kd.evaluation.rows import write_rows
from tests.evaluation.segmentations import command, description, evaluated, random_labels, write


def test_references_that_are_listed(folders, capsys, monkeypatch):
    """Listed references can lie anywhere and have any name; paths can be relative or contain a variable."""
    expected = write_rows(evaluated(folders), folders / "expected")[0].read_text()
    (folders / "elsewhere").mkdir()
    (folders / "ref" / "c0.nii.gz").rename(folders / "elsewhere" / "patient 7, seg.nii.gz")
    monkeypatch.setenv("REFERENCES", str(folders / "ref"))
    listed = {case: f"$REFERENCES/{case}.nii.gz" for case in ("c1", "c2", "c3", "d", "of_another_fold")}
    listed["c0"] = "elsewhere/patient 7, seg.nii.gz"
    entries = {case: {"images": [], "label": label} for case, label in listed.items()}
    (folders / "dataset.json").write_text(json.dumps(description(dataset=entries)))
    words = ["evaluate", "-djfile", str(folders / "dataset.json"), "-o", str(folders / "out"), "-np", "1"]
    words += ["-pred", str(folders / "one"), "-pred", str(folders / "two")]
    assert main(words) == 0
    assert (folders / "out" / "metrics.csv").read_text() == expected
    (folders / "copy").mkdir()
    (folders / "copy" / "dataset.json").write_text((folders / "dataset.json").read_text())
    capsys.readouterr()
    assert main([*words, "-djfile", str(folders / "copy" / "dataset.json"), "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert f"case c0: there is no {folders}/copy/elsewhere/patient 7, seg.nii.gz, which {folders}/copy/" in error
    assert "so give the dataset.json of the raw data set" in error
    (folders / "dataset.json").write_text(json.dumps(description()))
    assert main([*words, "--overwrite"]) == 1
    assert "give a folder of references with -ref: " in capsys.readouterr().err


def test_results_are_not_overwritten_unasked(folders, capsys):
    assert command(folders, predictions=("one",)) == 0
    before = {path: path.read_text() for path in (folders / "out").iterdir()}
    (folders / "out" / "metrics.csv").unlink()
    assert command(folders) == 1
    assert (
        f"{folders}/out/metrics.json already exists: give another folder with -o, or replace it with --overwrite"
        in capsys.readouterr().err
    )
    assert not (folders / "out" / "metrics.csv").exists() and (folders / "out" / "metrics.json").read_text()
    assert command(folders, "--overwrite") == 0
    assert {path: path.read_text() for path in (folders / "out").iterdir()}.keys() == before.keys()
    assert "| two " in (folders / "out" / "summary.md").read_text()


def test_the_command_writes_and_prints(folders, capsys):
    assert command(folders, "--tolerance", "2", "--tolerance", "b=0.5") == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["metrics.csv", "metrics.json", "summary.md"]
    summary = (folders / "out" / "summary.md").read_text()
    assert summary.strip() in printed
    assert "5 cases" in summary and "| one " in summary and "minus one [95 %]" in summary and "Wilcoxon p" in summary
    dice = {}
    for row in json.loads((folders / "out" / "metrics.json").read_text()):
        if row["method"] == "two" and row["dice"] is not None:
            dice.setdefault(row["case"], []).append(row["dice"])
    mean = np.mean([np.mean(values) for values in dice.values()])
    assert f"{100 * mean:.2f} ± " in summary


def test_methods_can_be_named(folders, capsys):
    assert command(folders, "-pred", f"again={folders / 'one'}", predictions=("one",)) == 0
    assert "minus one" in capsys.readouterr().out
    assert command(folders, "-pred", str(folders / "one"), predictions=("one",)) == 1
    assert "two methods are called 'one': name them, as in -pred NAME=DIR" in capsys.readouterr().err
    shutil.copytree(folders / "one", folders / "lr=1" / "preds")
    assert command(folders, "-pred", str(folders / "lr=1" / "preds"), "--overwrite", predictions=("one",)) == 0


def spoil(folders, kind):
    path = folders / "two" / "c2.nii.gz"
    if kind == "shape":
        write(path, random_labels(2, (6, 11, 10)))
    elif kind == "spacing":
        write(path, random_labels(2), (2.5, 1.2, 0.9))
    elif kind == "label":
        write(path, random_labels(2) + 5)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"case c2: .*/two has shape \(6, 11, 10\), but the reference has \(6, 11, 9\)"),
        ("spacing", r"case c2: .*/two has spacing \[2.5, 1.2, 0.9\] mm, but the reference has \[2.5, 1.2, 0.8\] mm"),
        ("label", r"case c2: .*/two/c2.nii.gz has label [567], but dataset.json allows only \[0, 1, 2\]"),
        ("truncated", "case c2: cannot read .*/two/c2.nii.gz: it is truncated"),
        ("missing", "case c2 is in .*/ref, but not in .*/two"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folders, capfd, kind, message):
    spoil(folders, kind)
    assert command(folders, "-np", "2" if kind == "shape" else "1") == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nnunet_kd: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tolerance", "0"], "--tolerance must be [NAME=]MM above 0, got '0'"),
        (["--tolerance", "c=1"], "there is a tolerance for 'c', but the structures are a, b"),
        (["-np", "0"], "-np must be at least 1, got 0"),
        (["-pfile", "nowhere.json"], "cannot read nowhere.json"),
        (["-pfile", "dataset.json"], "is not a plans file of nnU-Net"),
        (["-pfile", "plans.json"], "the plans name no image_reader_writer"),
        (["-pred", "nowhere"], "there is no folder nowhere"),
        (["-pred", "=nowhere"], "name the method, as in -pred NAME=DIR, got '=nowhere'"),
        (["-djfile", "nowhere.json"], "cannot read nowhere.json"),
        (["-o", "dataset.json"], "dataset.json is not a folder"),
    ],
)
def test_wrong_arguments(folders, capsys, words, message):
    (folders / "plans.json").write_text('{"plans_name": "P", "dataset_name": "D", "configurations": {}}')
    words = [str(folders / word) if word in ("plans.json", "dataset.json") else word for word in words]
    assert command(folders, *words) == 1
    assert message in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_an_invalid_description_is_refused(folders, capsys):
    (folders / "dataset.json").write_text("{}")
    assert command(folders) == 1
    assert "has no 'labels': it is not a dataset.json of nnU-Net" in capsys.readouterr().err
