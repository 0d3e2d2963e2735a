"""The mean over classes beside the mean over cases."""

import math
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.statistics import class_mean_and_error, mean_and_error
from nnunet_kd.evaluation.summary import metric_table
from tests.evaluation.figures import rows

# DCD, Table 2 (NETC, SNFH, ET, RC) and the overall Dice of its Table 1, BraTS 2024.
TABLE_2 = {
    "Teacher": ((60.85, 90.17, 76.18, 73.75), 75.23),
    "w/o KD": ((41.26, 87.00, 61.57, 64.61), 63.60),
    "CWD": ((40.97, 87.26, 59.91, 64.39), 63.13),
    "IFVD": ((46.34, 88.23, 63.95, 67.67), 66.54),
    "Logits": ((51.96, 86.91, 57.97, 64.41), 65.31),
    "Feature": ((42.55, 87.80, 60.36, 66.85), 64.39),
    "FreeKD": ((39.75, 86.39, 58.71, 63.80), 62.16),
    "Ours": ((54.36, 88.49, 62.55, 68.62), 68.51),
}


@pytest.mark.parametrize("method", TABLE_2)
def test_dcds_table_2_gives_its_table_1(method):
    """A class in few cases weighs as much as one in all of them, so that the mean over cases is another number."""
    classes, overall = TABLE_2[method]
    there = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]], bool)
    values = np.where(there, np.array(classes)[:, None] / 100, math.nan)
    spread = np.where(there, [0.02, -0.02, 0.02, -0.02, 0.02, -0.02], 0)
    values += spread - spread.sum(1, keepdims=True) / there.sum(1, keepdims=True)
    mean, _ = class_mean_and_error(values)
    assert 100 * mean == pytest.approx(overall, abs=0.01)
    case_means = [np.nanmean(values[:, case]) for case in range(6)]
    assert abs(100 * np.mean(case_means) - overall) > 2


def test_the_error_is_that_of_the_mean_over_cases_where_all_cases_have_all_classes():
    values = np.random.default_rng(0).random((3, 9))
    assert class_mean_and_error(values) == pytest.approx(mean_and_error(values.mean(0)))


def test_the_error_is_that_of_a_bootstrap():
    """Values are missing, classes share their cases, and there are several runs."""
    generator = np.random.default_rng(1)
    values = generator.random((3, 2, 60)) + generator.random(60)
    values[1, :, ::3] = values[2, 1, 5:30] = math.nan
    mean, error = class_mean_and_error(values)
    drawn = [values[..., generator.integers(0, 60, 60)] for _ in range(4000)]
    means = [np.mean([np.nanmean(one, axis=2).mean(1)]) for one in drawn]
    assert mean == pytest.approx(np.nanmean(values, axis=2).mean())
    assert error == pytest.approx(np.std(means), rel=0.06)


def test_a_class_without_values_does_not_count():
    values = np.array([[0.2, 0.4], [math.nan, math.nan]])
    assert class_mean_and_error(values) == mean_and_error(values[0])
    assert all(map(math.isnan, class_mean_and_error(values[1:])))


def test_both_means_are_named():
    made = rows(one=[0.2, 0.4, math.nan, 0.8])
    cells = dict(zip((table := metric_table(Scores(made))).header, table.rows[0], strict=True))
    assert cells["mean over cases, Dice (%)"].startswith("55.00 ")  # (0.3 + 0.8) / 2
    assert cells["mean over classes, Dice (%)"].startswith("40.00 ")  # (0.2 + 0.6) / 2
    seeds = [replace(row, seed=seed) for seed in (0, 1) for row in made]
    assert metric_table(Scores(seeds)).rows == table.rows
    single = metric_table(Scores([row for row in made if row.structure == "a"]), ["dice"])
    assert single.header == ["method", "mean over cases, Dice (%)", "a Dice (%)"]
