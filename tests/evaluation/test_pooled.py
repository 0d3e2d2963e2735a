"""Metrics of all voxels together are those of scikit-learn's confusion matrix; whole cases are told apart."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.metrics import METRICS, overlap_metrics
from nnunet_kd.evaluation.pooled import case_table, pooled_metrics, pooled_overall_accuracy, pooled_table, told_cases
from nnunet_kd.evaluation.rows import Row, write_rows
from nnunet_kd.evaluation.summary import summary_table
from tests.evaluation.segmentations import command, evaluated


def pairs(seed, cases=4):
    """Create references and predictions of three classes, in images of different sizes."""
    generator = np.random.default_rng(seed)
    for case in range(cases):
        reference = generator.integers(0, 3, (5 + case, 7))
        yield reference, np.where(generator.random(reference.shape) < 0.3, generator.integers(0, 3), reference)


def rows_of(all_pairs, method="one", seed=None):
    made = []
    for number, (reference, prediction) in enumerate(all_pairs):
        right = int((reference == prediction).sum())
        for structure, value in (("a", 1), ("b", 2)):
            confusion = Confusion.of(reference == value, prediction == value)
            values = {**dict.fromkeys(METRICS, 0.5), **confusion.metrics()}
            made.append(Row(method, f"c{number}", structure, values, seed, confusion, right))
    return made


def cells(table, method="one", structure=None):
    (row,) = [row for row in table.rows if row[0] == method and structure in (None, row[1])]
    return dict(zip(table.header, row, strict=True))


def test_pooled_metrics_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    made = list(pairs(0))
    real, found = (np.concatenate([one[i].ravel() for one in made]) for i in (0, 1))
    pooled = pooled_metrics(rows_of(made))
    for structure, value in (("a", 1), ("b", 2)):
        (tn, fp), (fn, tp) = metrics.confusion_matrix(real == value, found == value)
        ours = pooled[structure]
        assert ours["iou"] == pytest.approx(metrics.jaccard_score(real == value, found == value))
        assert ours["dice"] == pytest.approx(metrics.f1_score(real == value, found == value))
        assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(real == value, found == value))
        assert ours["sensitivity"] == pytest.approx(metrics.recall_score(real == value, found == value))
        assert ours["specificity"] == pytest.approx(tn / (tn + fp))
        assert (tp + fn, tp + fp) == ((real == value).sum(), (found == value).sum())
    assert pooled_overall_accuracy(rows_of(made)) == pytest.approx(metrics.accuracy_score(real, found))
    mean = metrics.jaccard_score(real, found, labels=[1, 2], average="macro")
    assert cells(pooled_table(rows_of(made)), structure="mean")["IoU (%)"] == f"{100 * mean:.2f}"


def test_a_sum_of_confusions_is_that_of_all_voxels():
    one, two = ((reference == 1, prediction == 1) for reference, prediction in pairs(1, 2))
    together = [np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(one, two, strict=True)]
    assert Confusion.of(*one) + Confusion.of(*two) == Confusion.of(*together)
    assert (Confusion.of(*one) + Confusion.of(*two)).metrics() == overlap_metrics(*together)


def test_pooling_weighs_voxels_and_the_mean_weighs_cases():
    small = (np.ones((1, 2), int), np.zeros((1, 2), int))
    large = (np.ones((10, 10), int), np.ones((10, 10), int))
    made = rows_of([small, large])
    assert pooled_metrics(made)["a"]["dice"] == pytest.approx(200 / 202)
    shown = cells(case_table(made))
    assert shown["overall accuracy, mean over cases (%)"] == "50.00 ± 50.00"
    assert shown["overall accuracy, pooled (%)"] == f"{100 * 100 / 102:.2f}"


def test_cases_are_rightly_told_by_any_structure():
    """Five cases: found, found as another structure, missed, invented, and rightly empty."""
    kinds = [(1, 1), (1, 2), (1, 0), (0, 2), (0, 0)]
    made = rows_of([(np.full((2, 2), real), np.full((2, 2), found)) for real, found in kinds])
    assert told_cases(made) == Confusion(2, 1, 1, 1)
    shown = cells(case_table(made))
    assert shown["cases rightly told (%)"] == "60.00"
    assert shown["positive cases rightly told (%)"] == "66.67"
    assert shown["negative cases rightly told (%)"] == "50.00"
    assert shown["a: cases rightly told (%)"] == "60.00" and shown["b: cases rightly told (%)"] == "60.00"


def test_several_seeds_are_averaged():
    one, two = list(pairs(2)), list(pairs(3))
    both = [*rows_of(one, seed=0), *rows_of(two, seed=1)]
    expected = np.mean([pooled_metrics(rows_of(pair))["a"]["dice"] for pair in (one, two)])
    assert cells(pooled_table(both), structure="a")["Dice (%)"] == f"{100 * expected:.2f}"
    accuracy = np.mean([pooled_overall_accuracy(rows_of(pair)) for pair in (one, two)])
    assert cells(case_table(both))["overall accuracy, pooled (%)"] == f"{100 * accuracy:.2f}"


def test_rows_of_older_files_have_no_such_tables(tmp_path):
    made = rows_of(pairs(0))
    old = [replace(row, confusion=None, right=None) for row in made]
    assert pooled_table(old) is None and case_table(old) is None
    assert "One confusion matrix" in summary_table(made, "one") and "One confusion" not in summary_table(old, "one")
    assert list(json.loads(write_rows(old, tmp_path)[1].read_text())[0]) == ["method", "case", "structure", *METRICS]


def test_the_files_hold_what_is_pooled(folders):
    assert command(folders) == 0
    records = json.loads((folders / "out" / "metrics.json").read_text())
    table = list(csv.DictReader((folders / "out" / "metrics.csv").read_text().splitlines()))
    for row, record, line in zip(evaluated(folders), records, table, strict=True):
        assert record["overall_accuracy"] == row.overall_accuracy == float(line["overall_accuracy"])
        assert record["true_positives"] == row.confusion.true_positives == int(line["true_positives"])
        assert row.confusion.voxels == 6 * 11 * 9 and list(line) == list(record)
    summary = (folders / "out" / "summary.md").read_text()
    pooled = pooled_metrics(row for row in evaluated(folders) if row.method == "two")
    assert f"{100 * pooled['a']['iou']:.2f}" in summary and "overall accuracy, pooled (%)" in summary


def test_ignored_voxels_count_nowhere(folders):
    """Label 2 is the ignore label, so only background and label 1 are left."""
    made = evaluated(folders, labels={"background": 0, "a": 1, "ignore": 2})
    assert all(row.confusion.voxels < 6 * 11 * 9 for row in made if row.case == "c0")
    assert all(row.right == row.confusion.true_positives + row.confusion.true_negatives for row in made)
