"""Segmentations are compared with their references as nnU-Net compares them, or refused."""

import csv
import gzip
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import skimage.io
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.evaluation.folders import evaluate_folders, find_cases
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.evaluation.rows import write_rows
from tests.evaluation.segmentations import LABELS, description, evaluated, random_labels, write


@pytest.mark.parametrize(
    ("labels", "regions"),
    [(LABELS, [1, 2]), ({"background": 0, "whole": [1, 2], "b": 2}, [(1, 2), 2])],
    ids=["labels", "regions"],
)
def test_dice_and_iou_equal_those_of_nnunet(folders, labels, regions):
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
    """Rounded labels count as labels; the message shows all digits of a value that is not a label."""
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
            with pytest.raises(
                ValueError, match=r"c2\.nii\.gz has label 0\.9985, but dataset\.json allows only \[0, 1, 2\]"
            ):
                evaluated(folders)


def test_uncompressed_files_with_compressed_names_are_read(folders):
    expected = [row.values["dice"] for row in evaluated(folders)]
    for path in (folders / "ref").iterdir():
        path.write_bytes(gzip.decompress(path.read_bytes()))
    assert [row.values["dice"] for row in evaluated(folders)] == pytest.approx(expected, nan_ok=True)


def test_several_processes_give_the_same(folders):
    one, two = (write_rows(evaluated(folders, workers), folders / str(workers)) for workers in (1, 2))
    assert [path.read_text() for path in one] == [path.read_text() for path in two]


def test_files_contain_every_row(folders):
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


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_an_image_at_another_position_causes_a_warning(folders, capsys, reader):
    """The structure is at the same position, but the voxels are in another order, which lowers the Dice."""
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
        f"{folders}/one: 1 of 5 cases, for example c1, have another direction or origin than the reference; the "
        "voxels are compared by their index in the files"
    ]
    moved = SimpleITK.ReadImage(str(folders / "ref" / "c1.nii.gz"))
    moved.SetOrigin([0.3, 0.0, 0.0])  # a shift of less than half a voxel
    SimpleITK.WriteImage(moved, str(path))
    evaluate_folders(folders / "ref", predictions, evaluation, 1)
    assert not capsys.readouterr().err


def test_cases_that_only_one_folder_has(folders):
    (folders / "two" / "c1.nii.gz").unlink()
    predictions = {"one": folders / "one", "two": folders / "two"}
    with pytest.raises(ValueError, match=f"case c1 is in {folders}/ref, but not in {folders}/two"):
        find_cases(folders / "ref", predictions, ".nii.gz")
    (folders / "two" / "c2.nii.gz").unlink()
    with pytest.raises(ValueError, match="case c1 and 1 more are in .*/ref, but not in .*/two"):
        find_cases(folders / "ref", predictions, ".nii.gz")


def test_predictions_without_a_reference_are_ignored(folders, capsys):
    """A folder can hold the predictions of all cases although only some have references."""
    every = evaluated(folders)
    for case in ("c1", "d"):
        (folders / "ref" / f"{case}.nii.gz").unlink()
    (folders / "two" / "d.nii.gz").unlink()
    assert evaluated(folders) == [row for row in every if row.case not in ("c1", "d")]
    assert capsys.readouterr().err.splitlines() == [
        f"nnunet_kd: warning: {folders}/one: 2 of 5 predictions, for example c1, have no reference and are ignored",
        f"nnunet_kd: warning: {folders}/two: 1 of 4 predictions, for example c1, have no reference and are ignored",
    ]


def with_several_values(path, kind):
    """Write a file whose first channel or volume is a segmentation."""
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
    """nnU-Net would evaluate the first channel of a colour picture and the first volume of a series."""
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


def test_files_of_operating_systems_are_not_cases(folders):
    for folder in ("ref", "one"):
        for name in ("._c0.nii.gz", ".DS_Store", "Thumbs.db"):
            (folders / folder / name).write_bytes(b"junk")
    assert find_cases(folders / "ref", {"one": folders / "one"}, ".nii.gz") == ["c0", "c1", "c2", "c3", "d"]


def test_a_folder_with_a_name_that_python_cannot_decode(folders):
    other = Path(os.fsdecode(os.fsencode(folders) + b"/\xfc"))
    shutil.copytree(folders / "one", other)
    with pytest.raises(ValueError, match=r"cannot open '.*\\udcfc': the name is not in utf-8; rename it"):
        find_cases(folders / "ref", {"one": other}, ".nii.gz")
