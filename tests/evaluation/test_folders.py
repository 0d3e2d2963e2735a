import csv
import gzip
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import skimage.io
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.cli import main
from nnunet_kd.evaluation.folders import evaluate_folders, find_cases
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.evaluation.rows import write_rows

LABELS = {"background": 0, "a": 1, "b": 2}
SPACING = (2.5, 1.2, 0.8)


def write(path, labels, spacing=SPACING):
    image = SimpleITK.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1][: labels.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def random_labels(seed, shape=(6, 11, 9)):
    """Blobs of two labels."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    return np.digitize(noise, [0.1, 0.3])


@pytest.fixture
def folders(tmp_path):
    """Four cases, two methods, and a description."""
    for case in range(4):
        truth = random_labels(case)
        write(tmp_path / "ref" / f"c{case}.nii.gz", truth)
        for number, method in enumerate(("one", "two")):
            noisy = np.where(np.random.default_rng(case).random(truth.shape) < 0.1 * (number + 1), 0, truth)
            write(tmp_path / method / f"c{case}.nii.gz", noisy)
    empty = np.zeros((6, 11, 9))
    write(tmp_path / "ref" / "d.nii.gz", empty)
    write(tmp_path / "one" / "d.nii.gz", empty)
    write(tmp_path / "two" / "d.nii.gz", np.where(random_labels(9) == 1, 1, 0))
    (tmp_path / "dataset.json").write_text(json.dumps(description()))
    return tmp_path


def description(**changes):
    return {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "T1"}, "numTraining": 4, **changes}


def evaluated(folder, workers=1, **changes):
    evaluation = read_evaluation(description(**changes), None, folder / "ref" / "c0.nii.gz")
    predictions = {"one": folder / "one", "two": folder / "two"}
    return evaluate_folders(folder / "ref", predictions, evaluation, workers)


@pytest.mark.parametrize(
    ("labels", "regions"),
    [(LABELS, [1, 2]), ({"background": 0, "whole": [1, 2], "b": 2}, [(1, 2), 2])],
    ids=["labels", "regions"],
)
def test_dice_and_iou_are_nnunets(folders, labels, regions):
    rows = evaluated(folders, labels=labels)
    for method in ("one", "two"):
        theirs = compute_metrics_on_folder(
            str(folders / "ref"), str(folders / method), None, SimpleITKIO(), ".nii.gz", regions, None, 1
        )
        own = [row for row in rows if row.method == method]
        expected = [
            (case["metrics"][region]["Dice"], case["metrics"][region]["IoU"])
            for case in theirs["metric_per_case"]
            for region in regions
        ]
        np.testing.assert_allclose([(row.values["dice"], row.values["iou"]) for row in own], expected, atol=1e-12)
        assert math.isnan(expected[-1][0])  # case d has no b


def test_ignored_voxels_do_not_count(folders):
    rows = evaluated(folders, labels={"background": 0, "a": 1, "ignore": 2})
    for method in ("one", "two"):
        theirs = compute_metrics_on_folder(
            str(folders / "ref"), str(folders / method), None, SimpleITKIO(), ".nii.gz", [1], 2, 1
        )
        expected = [case["metrics"][1]["Dice"] for case in theirs["metric_per_case"]]
        np.testing.assert_allclose([row.values["dice"] for row in rows if row.method == method], expected)


def test_labels_that_float32_has_rounded_and_others(folders):
    """They count as what they are; one that is no label is given in full."""
    expected = evaluated(folders)
    path = folders / "two" / "c2.nii.gz"
    image = SimpleITK.ReadImage(str(path))
    for almost, whole in ((0.9999999, True), (1.0002, True), (0.9985, False)):
        labels = SimpleITK.GetArrayFromImage(image)
        changed = SimpleITK.GetImageFromArray(np.where(labels == 1, almost, labels).astype(np.float32))
        changed.CopyInformation(image)
        SimpleITK.WriteImage(changed, str(path))
        if whole:
            assert [row.values["dice"] for row in evaluated(folders)] == pytest.approx(
                [row.values["dice"] for row in expected], nan_ok=True
            )
        else:
            with pytest.raises(ValueError, match=r"c2\.nii\.gz has label 0\.9985, dataset\.json only \[0, 1, 2\]"):
                evaluated(folders)


def test_files_that_are_called_compressed_and_are_not(folders):
    expected = [row.values["dice"] for row in evaluated(folders)]
    for path in (folders / "ref").iterdir():
        path.write_bytes(gzip.decompress(path.read_bytes()))
    assert [row.values["dice"] for row in evaluated(folders)] == pytest.approx(expected, nan_ok=True)


def test_several_processes_give_the_same(folders):
    one, two = (write_rows(evaluated(folders, workers), folders / str(workers)) for workers in (1, 2))
    assert [path.read_text() for path in one] == [path.read_text() for path in two]


def test_files_hold_every_row(folders):
    rows = evaluated(folders)
    table, records = write_rows(rows, folders / "out")
    lines = list(csv.DictReader(table.open()))
    content = json.loads(records.read_text())
    assert len(lines) == len(content) == len(rows) == 2 * 5 * 2
    for line, record, row in zip(lines, content, rows, strict=True):
        assert line["case"] == record["case"] == row.case
        for name, value in row.values.items():
            if math.isnan(value):
                assert line[name] == "" and record[name] is None
            else:
                assert float(line[name]) == record[name] == value
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["metrics.csv", "metrics.json"]
    assert "seed" not in lines[0] and "seed" not in content[0]


def test_seeds_have_a_column(folders):
    first = evaluated(folders)[0]
    table, records = write_rows([first, replace(first, seed=0), replace(first, seed=3)], folders / "out")
    assert table.read_text().startswith("method,seed,case,structure,")
    assert [line["seed"] for line in csv.DictReader(table.open())] == ["", "0", "3"]
    assert [record["seed"] for record in json.loads(records.read_text())] == [None, 0, 3]


@pytest.mark.parametrize(("axis", "width"), list(enumerate(SPACING)))
def test_distances_are_in_millimetres_of_their_own_axis(tmp_path, axis, width):
    """A slab that is two voxels off, and tolerances on either side of that."""
    truth, found = np.zeros((2, 24, 24, 24), int)
    block = [slice(8, 16)] * 3
    truth[tuple(block)] = 1
    block[axis] = slice(10, 18)
    found[tuple(block)] = 1
    write(tmp_path / "ref" / "c.nii.gz", 2 * truth)
    write(tmp_path / "moved" / "c.nii.gz", 2 * found)
    (tmp_path / "dataset.json").write_text(json.dumps(description()))
    for factor in (1.99, 2.01):
        words = ("--tolerance", "30", "--tolerance", f"b={factor * width}", "--overwrite")
        assert command(tmp_path, *words, predictions=("moved",)) == 0
        rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
        values = next(row for row in rows if row["structure"] == "b")
        assert values["hd95"] == pytest.approx(2 * width)
        assert values["nsd"] == 1 if factor > 2 else values["nsd"] < 0.9
        assert values["dice"] == 0.75


def test_distances_to_ignored_voxels_do_not_count(tmp_path):
    truth = np.zeros((10, 10, 20), int)
    truth[3:6, 3:6, 2:6] = 1
    found = truth.copy()
    truth[..., 12:] = 2
    found[3:6, 3:6, 15:18] = 1
    write(tmp_path / "ref" / "c.nii.gz", truth)
    write(tmp_path / "one" / "c.nii.gz", found)
    for name, apart in (("ignore", 0), ("b", 9.6)):
        labels = {"background": 0, "a": 1, name: 2}
        evaluation = read_evaluation(description(labels=labels), None, tmp_path / "ref" / "c.nii.gz")
        values = evaluate_folders(tmp_path / "ref", {"one": tmp_path / "one"}, evaluation, 1)[0].values
        assert values["hd95"] == pytest.approx(apart)
        assert (values["nsd"] == 1) == (name == "ignore")


def test_distances_in_two_dimensions_know_no_thickness(tmp_path):
    truth, found = np.zeros((2, 1, 24, 24), int)
    truth[0, 8:16, 8:16] = 1
    found[0, 11:19, 8:16] = 1
    write(tmp_path / "ref" / "c.nii.gz", truth, (999.0, 1.2, 0.8))
    write(tmp_path / "one" / "c.nii.gz", found, (999.0, 1.2, 0.8))
    evaluation = read_evaluation(description(), None, tmp_path / "ref" / "c.nii.gz")
    values = evaluate_folders(tmp_path / "ref", {"one": tmp_path / "one"}, evaluation, 1)[0].values
    assert values["hd95"] == pytest.approx(3 * 1.2) and values["nsd"] < 0.9


def test_two_dimensions(tmp_path):
    for folder in ("ref", "one", "two"):
        write(tmp_path / folder / "c0.nii.gz", random_labels(0)[0][None], (999.0, 1.2, 0.8))
    rows = evaluated(tmp_path)
    distances = [row.values["hd95"] for row in rows]
    assert 0 in distances and all(distance == 0 or math.isnan(distance) for distance in distances)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_an_image_that_lies_elsewhere_is_warned_of(folders, capsys, reader):
    """The same structure at the same place, in voxels of another order: Dice says otherwise."""
    path = folders / "one" / "c1.nii.gz"
    truth = SimpleITK.ReadImage(str(folders / "ref" / "c1.nii.gz"))
    SimpleITK.WriteImage(SimpleITK.Flip(truth, (True, False, False)), str(path))
    plans = {"plans_name": "p", "dataset_name": "d", "image_reader_writer": reader}
    evaluation = read_evaluation(description(), plans, folders / "ref" / "c0.nii.gz")
    predictions = {"one": folders / "one", "two": folders / "two"}
    for workers in (1, 2):
        rows = evaluate_folders(folders / "ref", predictions, evaluation, workers)
        assert capsys.readouterr().err.count("warning") == 1
        assert rows[2].case == "c1" and rows[2].values["dice"] < 0.9
    said = []
    evaluate_folders(folders / "ref", predictions, evaluation, 1, warn=said.append)
    assert said == [
        f"{folders}/one: 1 of 5 cases, c1 for one, have another direction or origin than the reference; voxels are "
        "compared as they lie in the files"
    ]
    moved = SimpleITK.ReadImage(str(folders / "ref" / "c1.nii.gz"))
    moved.SetOrigin([0.3, 0.0, 0.0])  # less than half a voxel
    SimpleITK.WriteImage(moved, str(path))
    evaluate_folders(folders / "ref", predictions, evaluation, 1)
    assert not capsys.readouterr().err


def test_cases_of_one_side_only(folders):
    (folders / "two" / "c1.nii.gz").unlink()
    predictions = {"one": folders / "one", "two": folders / "two"}
    with pytest.raises(ValueError, match=f"case c1 is in {folders}/ref, but not in {folders}/two"):
        find_cases(folders / "ref", predictions, ".nii.gz")
    (folders / "two" / "c2.nii.gz").unlink()
    with pytest.raises(ValueError, match="case c1 and 1 more are in .*/ref, but not in .*/two"):
        find_cases(folders / "ref", predictions, ".nii.gz")


def test_predictions_without_a_reference_are_left_out(folders, capsys):
    """As where a folder holds those of all cases, and references are there for some."""
    every = evaluated(folders)
    for case in ("c1", "d"):
        (folders / "ref" / f"{case}.nii.gz").unlink()
    (folders / "two" / "d.nii.gz").unlink()
    assert evaluated(folders) == [row for row in every if row.case not in ("c1", "d")]
    assert capsys.readouterr().err.splitlines() == [
        f"nnunet_kd: warning: {folders}/one: 2 of 5 predictions, c1 for one, have no reference and are left out",
        f"nnunet_kd: warning: {folders}/two: 1 of 4 predictions, c1 for one, have no reference and are left out",
    ]


def test_references_that_are_listed(folders, capsys, monkeypatch):
    """Wherever they lie and whatever they are called: relative to dataset.json, and by a variable."""
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
        f"{folders}/out/metrics.json is there already: give another folder with -o, or --overwrite to replace it"
        in capsys.readouterr().err
    )
    assert not (folders / "out" / "metrics.csv").exists() and (folders / "out" / "metrics.json").read_text()
    assert command(folders, "--overwrite") == 0
    assert {path: path.read_text() for path in (folders / "out").iterdir()}.keys() == before.keys()
    assert "| two " in (folders / "out" / "summary.md").read_text()


def with_several_values(path, kind):
    """A file whose first channel or volume is a segmentation."""
    labels = random_labels(1).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    if kind == "colour":
        skimage.io.imsave(path, np.stack([labels[0], labels[1], labels[2]], -1), check_contrast=False)
    elif kind == "alpha":
        skimage.io.imsave(path, np.stack([labels[0]] * 4, -1), check_contrast=False)
    elif kind == "series":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([labels, labels]), isVector=False), str(path))
    elif kind == "vectors":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([labels] * 3, -1), isVector=True), str(path))
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([labels[0]] * 3, -1), isVector=True), str(path))


@pytest.mark.parametrize("spoilt", ["ref", "one"])
@pytest.mark.parametrize(
    ("kind", "ending", "count"),
    [
        ("colour", ".png", 3),
        ("alpha", ".png", 4),
        ("series", ".nii.gz", 2),
        ("vectors", ".nii.gz", 3),
        ("2-D vectors", ".mha", 3),
    ],
)
def test_only_one_value_per_voxel_is_a_segmentation(tmp_path, kind, ending, count, spoilt):
    """Of a colour picture or a series nnU-Net's readers give the first channel first: it would be evaluated."""
    for folder in ("ref", "one"):
        with_several_values(tmp_path / folder / f"c{ending}", kind)
        if folder != spoilt and kind not in ("vectors", "2-D vectors"):
            labels = random_labels(1).astype(np.uint8)
            path = tmp_path / folder / f"c{ending}"
            if ending == ".png":
                skimage.io.imsave(path, labels[0], check_contrast=False)
            else:
                write(path, labels, (1, 1, 1))
    example = tmp_path / "ref" / f"c{ending}"
    evaluation = read_evaluation(description(file_ending=ending), None, example)
    path = example if kind in ("vectors", "2-D vectors") else tmp_path / spoilt / f"c{ending}"
    with pytest.raises(ValueError, match=rf"case c: {path} has {count} values per voxel .*; a segmentation has one"):
        evaluate_folders(tmp_path / "ref", {"one": tmp_path / "one"}, evaluation, 1)


def command(folders, *more, predictions=("one", "two")):
    words = ["evaluate", "-ref", str(folders / "ref"), "-djfile", str(folders / "dataset.json")]
    words += ["-o", str(folders / "out")]
    for name in predictions:
        words += ["-pred", str(folders / name)]
    return main([*words, "-np", "1", *more])


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


def test_methods_are_named(folders, capsys):
    assert command(folders, "-pred", f"again={folders / 'one'}", predictions=("one",)) == 0
    assert "minus one" in capsys.readouterr().out
    assert command(folders, "-pred", str(folders / "one"), predictions=("one",)) == 1
    assert "two folders are called 'one': name them, -pred NAME=DIR" in capsys.readouterr().err
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
        ("shape", r"case c2: .*/two has shape \(6, 11, 10\), the reference \(6, 11, 9\)"),
        ("spacing", r"case c2: .*/two has spacing \[2.5, 1.2, 0.9\] mm, the reference \[2.5, 1.2, 0.8\] mm"),
        ("label", r"case c2: .*/two/c2.nii.gz has label [567], dataset.json only \[0, 1, 2\]"),
        ("truncated", "case c2: cannot read .*/two/c2.nii.gz: it is cut off"),
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
        (["--tolerance", "c=1"], "there is no structure 'c' to have a tolerance: a, b"),
        (["-np", "0"], "-np must be at least 1, got 0"),
        (["-pfile", "nowhere.json"], "cannot read nowhere.json"),
        (["-pfile", "dataset.json"], "holds no plans of nnU-Net"),
        (["-pfile", "plans.json"], "the plans name no image_reader_writer"),
        (["-pred", "nowhere"], "there is no folder nowhere"),
        (["-pred", "=nowhere"], "a folder needs a method's name, -pred NAME=DIR, got '=nowhere'"),
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


def test_a_description_that_is_none(folders, capsys):
    (folders / "dataset.json").write_text("{}")
    assert command(folders) == 1
    assert "has no 'labels': it is no dataset.json of nnU-Net" in capsys.readouterr().err


def test_what_systems_leave_behind_is_no_case(folders):
    for folder in ("ref", "one"):
        for name in ("._c0.nii.gz", ".DS_Store", "Thumbs.db"):
            (folders / folder / name).write_bytes(b"junk")
    assert find_cases(folders / "ref", {"one": folders / "one"}, ".nii.gz") == ["c0", "c1", "c2", "c3", "d"]


def test_a_folder_whose_name_python_cannot_decode(folders):
    other = Path(os.fsdecode(os.fsencode(folders) + b"/\xfc"))
    shutil.copytree(folders / "one", other)
    with pytest.raises(ValueError, match=r"cannot open '.*\\udcfc': the name is not in utf-8; rename it"):
        find_cases(folders / "ref", {"one": other}, ".nii.gz")
