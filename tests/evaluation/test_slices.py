"""Volumes are scored slice by slice."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.metrics import overlap_metrics
from nnunet_kd.evaluation.pairs import evaluate_pair
from nnunet_kd.evaluation.protocol import Evaluation, slice_axis
from nnunet_kd.evaluation.slices import slice_table
from tests.evaluation.segmentations import command, random_labels, write

STRUCTURES = {"a": (1,), "b": (2,)}


def evaluation(axis):
    return Evaluation(STRUCTURES, None, (0, 1, 2), ".nii.gz", object, dict.fromkeys(STRUCTURES, 1.0), slice_axis=axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_scored_as_an_image_of_its_own(axis):
    truth, labels = random_labels(0), random_labels(1)
    truth[(slice(None),) * axis + (0,)] = labels[(slice(None),) * axis + (0,)] = 0
    made = evaluate_pair(truth, labels, (1, 1, 1), evaluation(axis), "one", "c")
    rows = {(row.case, row.structure): row for row in made}
    kept = [number for number in range(truth.shape[axis]) if np.any(np.maximum(truth, labels).take(number, axis))]
    assert [*rows] == [(f"c, slice {number}", structure) for number in kept for structure in "ab"] and 0 not in kept
    for number in kept:
        for structure, value in (("a", 1), ("b", 2)):
            row = rows[f"c, slice {number}", structure]
            expected = overlap_metrics(truth.take(number, axis) == value, labels.take(number, axis) == value)
            np.testing.assert_equal({metric: row.values[metric] for metric in expected}, expected)
            assert math.isnan(row.values["hd95"]) and math.isnan(row.values["nsd"])


def test_means_over_any_and_over_labelled_slices():
    """Of four slices, one is right, one is missed, one is invented, and one is rightly empty."""
    truth, labels = np.zeros((2, 4, 2, 2), int)
    truth[:2], labels[0], labels[2] = 1, 1, 1
    table = slice_table(evaluate_pair(truth, labels, (1, 1, 1), evaluation(0), "one", "c"))
    assert table.header[2:4] == ["any: slices", "any: Dice (%)"] and table.header[7] == "labelled: slices"
    assert table.rows[0][2:4] == ["3", "33.33"] and table.rows[0][7:9] == ["2", "50.00"]
    assert table.rows[1][2:] == ["0", "-", "-", "-", "-"] * 2


def test_seeds_are_averaged():
    """The two runs have other slices, because one of them draws the structure where nothing is."""
    truth, labels = np.zeros((2, 4, 2, 2), int)
    truth[:2], labels[:2] = 1, 1
    worse = labels.copy()
    worse[1:4] = [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    runs = [evaluate_pair(truth, one, (1, 1, 1), evaluation(0), "one", "c") for one in (labels, worse)]
    table = slice_table([replace(row, seed=seed) for seed, run in enumerate(runs) for row in run])
    assert table.rows[0][2:4] == ["3", "62.50"] and table.rows[0][7:9] == ["2", "75.00"]  # 1 and 1/4; 1 and 1/2


def test_the_command_scores_slices_beside_volumes(folders):
    (folders / "plans.json").write_text(
        json.dumps(
            {
                "plans_name": "P",
                "dataset_name": "D",
                "configurations": {},
                "image_reader_writer": "SimpleITKIO",
                "transpose_forward": [2, 0, 1],
            }
        )
    )
    assert command(folders, "--slices", "-pfile", str(folders / "plans.json")) == 0
    volumes = json.loads((folders / "out" / "metrics.json").read_text())
    slices = json.loads((folders / "out" / "slices.json").read_text())
    assert {line["case"].partition(", slice ")[2] for line in slices} == {*map(str, range(9))}  # 6 x 11 x 9 voxels
    for volume in volumes:
        own = [
            line
            for line in slices
            if line["case"].startswith(f"{volume['case']}, slice ")
            and (line["method"], line["structure"]) == (volume["method"], volume["structure"])
        ]
        for count in ("true_positives", "false_positives", "false_negatives"):
            assert sum(line[count] for line in own) == volume[count]
    summary = (folders / "out" / "summary.md").read_text()
    assert "Every slice is an image of its own." in summary and summary.count("| any: slices |") == 1


def test_images_without_slices_are_refused(folders, capsys):
    for name in ("ref", "one", "two"):
        for path in (folders / name).iterdir():
            write(path, random_labels(0)[0])
    assert command(folders, "--slices") == 1
    assert "case c0 is a single image, which has no slices: leave out --slices" in capsys.readouterr().err


def test_the_axis_is_that_of_the_plans():
    assert slice_axis(None) == 0 and slice_axis({"transpose_forward": [1, 0, 2]}) == 1
    with pytest.raises(ValueError, match="the plans have no transpose_forward"):
        slice_axis({})
