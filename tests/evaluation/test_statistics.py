import math

import numpy as np
import pytest
from scipy import stats

from nnunet_kd.evaluation.statistics import bootstrap, gap_closed, holm, mean_and_error, mean_interval, paired_tests


def test_mean_and_standard_error():
    assert mean_and_error([1, 2, 3, math.nan]) == (2, pytest.approx(1 / math.sqrt(3)))
    mean, error = mean_and_error([5])
    assert mean == 5 and math.isnan(error)
    assert all(math.isnan(x) for x in mean_and_error([math.nan]))


def test_holm_by_hand():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "none": math.nan})
    assert corrected["a"] == pytest.approx(0.03) and corrected["c"] == corrected["b"] == pytest.approx(0.06)
    assert math.isnan(corrected["none"]) and list(corrected) == ["a", "b", "c", "none"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_paired_tests_are_scipys():
    generator = np.random.default_rng(0)
    baseline = generator.random(30)
    methods = {
        "better": baseline + 0.1 + 0.05 * generator.standard_normal(30),
        "same": baseline + 0.01 * generator.standard_normal(30),
    }
    methods["better"][3] = math.nan
    tests = paired_tests(methods, baseline)
    usable = np.isfinite(methods["better"])
    assert tests["better"].t == pytest.approx(stats.ttest_rel(methods["better"][usable], baseline[usable]).pvalue)
    assert tests["same"].wilcoxon == pytest.approx(stats.wilcoxon(methods["same"], baseline).pvalue)
    assert tests["better"].wilcoxon_holm == pytest.approx(2 * tests["better"].wilcoxon)
    assert (tests["better"].cases, tests["same"].cases) == (29, 30)


def test_tests_that_are_not_defined():
    baseline = np.array([0.5, 0.6, 0.7])
    tests = paired_tests({"equal": baseline.copy(), "one": np.array([math.nan, math.nan, 1.0])}, baseline)
    for result in tests.values():
        assert math.isnan(result.t) and math.isnan(result.wilcoxon) and math.isnan(result.wilcoxon_holm)
    constant = paired_tests({"shift": baseline + 0.25}, baseline)["shift"]
    assert constant.wilcoxon == pytest.approx(0.25) and not constant.t > 0  # no spread, no t-test


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).standard_normal(200)
    interval = mean_interval(values)
    mean, error = mean_and_error(values)
    assert interval.value == pytest.approx(mean)
    assert (interval.low, interval.high) == (
        pytest.approx(mean - 1.96 * error, abs=0.02),
        pytest.approx(mean + 1.96 * error, abs=0.02),
    )
    assert mean_interval(values) == interval  # seeded
    assert math.isnan(mean_interval([math.nan]).value)


def test_gap_closed():
    baseline, teacher = np.array([0.4, 0.5, 0.6, 0.7]), np.array([0.8, 0.7, 0.8, 0.9])
    half = gap_closed((baseline + teacher) / 2, baseline, teacher)
    assert (half.value, half.low, half.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert gap_closed(teacher, baseline, teacher).value == pytest.approx(1)
    assert gap_closed(baseline, baseline, teacher).value == 0
    assert math.isnan(gap_closed(teacher, baseline, baseline).value)
    holes = np.array([math.nan, 0.6, 0.7, 0.8])
    assert gap_closed(holes, baseline, teacher).value == pytest.approx(0.3 / 0.6)
    assert math.isnan(gap_closed(np.full(4, math.nan), baseline, teacher).value)


def test_draws_without_a_value_are_left_out():
    interval = bootstrap(lambda draw: math.nan if draw[0] == 0 else float(draw[0]), 3)
    assert math.isnan(interval.value) and 1 <= interval.low <= interval.high <= 2
