"""Surface distances are in the millimetres of the image and exclude ignored voxels."""

import json
import math

import numpy as np
import pytest

from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation
from tests.evaluation.segmentations import SPACING, command, description, evaluated, random_labels, write


@pytest.mark.parametrize(("axis", "width"), list(enumerate(SPACING)))
def test_distances_are_in_millimetres_of_their_own_axis(tmp_path, axis, width):
    """A slab is shifted by two voxels, and the tolerances are just below and above this shift."""
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


def test_distances_in_two_dimensions_ignore_the_thickness(tmp_path):
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
