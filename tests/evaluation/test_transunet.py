"""The scoring of Synapse's published tables."""

import math
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.evaluation.transunet import transunet_metrics
from tests.evaluation.brute_force import surface_voxels
from tests.evaluation.segmentations import command, description, evaluated, random_labels

EMPTY = np.zeros((4, 5, 6), bool)
MASK = EMPTY.copy()
MASK[1:3, 1:4, 2:5] = True


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (MASK, EMPTY, (0, 0)),  # missed
        (EMPTY, MASK, (1, 0)),  # invented
        (EMPTY, EMPTY, (0, 0)),  # rightly absent
        (MASK, MASK, (1, 0)),
    ],
    ids=["missed", "invented", "absent", "equal"],
)
def test_published_values_of_absent_structures(reference, prediction, expected):
    metrics = transunet_metrics(reference, prediction)
    assert (metrics["dice"], metrics["hd95"]) == expected


@pytest.mark.parametrize("seed", range(3))
def test_distances_of_both_directions_are_one_sample(seed):
    reference, prediction = random_labels(seed) == 2, random_labels(seed + 10) == 2
    a, b = surface_voxels(reference), surface_voxels(prediction)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))
    there, back = distances.min(0), distances.min(1)
    metrics = transunet_metrics(reference, prediction)
    assert metrics["hd95"] == pytest.approx(np.percentile([*there, *back], 95), rel=1e-6)
    assert metrics["hd95"] != pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    both = (reference & prediction).sum()
    assert metrics["dice"] == pytest.approx(2 * both / (reference.sum() + prediction.sum()))


def test_invalid_voxels_do_not_count():
    valid = MASK.copy()
    assert transunet_metrics(MASK, ~MASK, valid=valid)["dice"] == 0
    assert transunet_metrics(~MASK, MASK, valid=valid) == {"dice": 1, "hd95": 0, "nsd": 0}


def test_spacing_does_not_matter_and_other_metrics_stay(folders):
    ours = evaluated(folders)
    evaluation = read_evaluation(description(), None, folders / "ref" / "c0.nii.gz")
    predictions = {"one": folders / "one", "two": folders / "two"}
    theirs = evaluate_folders(folders / "ref", predictions, replace(evaluation, scoring="transunet"), 1)
    other = [metric for metric in METRICS if metric not in ("dice", "hd95", "nsd")]
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_equal([one.values[metric] for metric in other], [two.values[metric] for metric in other])
        assert one.confusion == two.confusion and not math.isnan(two.values["dice"] + two.values["hd95"])
    absent = {(row.method, row.structure): row.values["dice"] for row in theirs if row.case == "d"}
    assert absent == {("one", "a"): 0, ("one", "b"): 0, ("two", "a"): 1, ("two", "b"): 0}
    dice = [row.values["dice"] for row in ours if row.case == "c0"]
    assert dice == [row.values["dice"] for row in theirs if row.case == "c0"]


def test_the_command_says_so(folders):
    assert command(folders, "--scoring", "transunet") == 0
    summary = (folders / "out" / "summary.md").read_text()
    assert "a HD95 (voxels)" in summary and "HD95 (mm)" not in summary and "as by TransUNet" in summary
    assert command(folders, "--overwrite") == 0
    assert "TransUNet" not in (folders / "out" / "summary.md").read_text()
