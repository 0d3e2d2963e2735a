"""The Dice of stored soft labels against the labels, by case and structure."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.teachers.stored_scores import labelled_cases, score_case, score_table

SHAPE = (4, 6, 6)
CLASSES = {"background": 0, "a": 1, "b": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


class Cases:
    """Preprocessed cases in memory, with what scoring asks of :class:`PreprocessedCases`."""

    def __init__(self, references, labels, order=None):
        self.references = references
        self.labels = LabelManager(labels, order)
        self.experiment = SimpleNamespace(dataset_json={"labels": labels})

    def load(self, case):
        return np.zeros((1, *SHAPE), np.float32), self.references[case]

    def modified(self, case):
        return 0

    def without_reference(self):
        return [case for case, reference in self.references.items() if (reference == 3).all()]


def reference_with(*blocks):
    """Create labels with one slab of voxels per value."""
    made = np.zeros(SHAPE, np.int16)
    for number, value in enumerate(blocks):
        made[number] = value
    return made


def stored(folder, segmentations, heads, regions=False):
    store = SoftLabelStore(folder / "plans_soft_sam")
    for case, segmentation in segmentations.items():
        if regions:
            logits = np.stack([np.isin(segmentation, (1, 2)), segmentation == 2])[:heads] - 0.5
        else:
            logits = np.stack([segmentation == value for value in range(heads)])
        store.write(case, 4.0 * logits, SHAPE, {"images": "", "labels": ""})
    return store


def test_dice_by_case_and_structure(tmp_path):
    """Outside the body (-1) is background, and ignored voxels count in no structure."""
    references = {"one": reference_with(1, 2, 3, -1), "two": reference_with(1, 1, 0, 0)}
    found = {"one": reference_with(1, 1, 2, 0), "two": reference_with(1, 1, 0, 0)}
    cases = Cases(references, CLASSES)
    store = stored(tmp_path, found, 3)
    rows = [row for case in references for row in score_case(store, cases, case)]
    dice = {(row.case, row.structure): row.values["dice"] for row in rows}
    assert dice[("one", "a")] == pytest.approx(2 / 3) and dice[("one", "b")] == 0 and dice[("two", "a")] == 1
    assert np.isnan(dice[("two", "b")]) and rows[0].confusion.voxels == 3 * 36 and rows[0].right == 2 * 36
    table = score_table(rows)
    assert table.header == ["case", "a", "b", "mean"]
    assert table.rows[0] == ["one", "66.67", "0.00", "33.33"] and table.rows[1] == ["two", "100.00", "-", "100.00"]
    name, a, b, mean = table.rows[2]
    assert (name, a, b, mean.split(" ± ")[0]) == ("mean", "83.33 ± 16.67", "0.00", "41.67")


def test_regions(tmp_path):
    cases = Cases({"one": reference_with(1, 2, 0, 0)}, REGIONS, [1, 2])
    store = stored(tmp_path, {"one": reference_with(2, 2, 0, 0)}, 2, regions=True)
    whole, core = score_case(store, cases, "one")
    assert (whole.structure, whole.values["dice"]) == ("whole", 1)
    assert (core.structure, core.values["dice"]) == ("core", pytest.approx(2 / 3))


def test_damaged_soft_labels_are_refused_and_cases_without_reference_left_out(tmp_path):
    cases = Cases({"one": reference_with(1), "two": np.full(SHAPE, 3, np.int16)}, CLASSES)
    store = stored(tmp_path, {"one": reference_with(1)}, 3)
    assert labelled_cases(cases, ["one", "two"]) == ["one"]
    store.path("one").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the soft labels .*one\.b2nd: the file is damaged"):
        score_case(store, cases, "one")
