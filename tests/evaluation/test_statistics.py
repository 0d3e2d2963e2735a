import math

import numpy as np
import pytest
from scipy import stats

from nnunet_kd.evaluation.statistics import (
    bootstrap,
    gap_closed,
    holm,
    least_wilcoxon,
    mean_and_error,
    mean_difference,
    mean_interval,
    mean_of_runs,
    paired_tests,
)


def test_mean_and_standard_error():
    assert mean_and_error([1, 2, 3, math.nan]) == (2, pytest.approx(1 / math.sqrt(3)))
    mean, error = mean_and_error([5])
    assert mean == 5 and math.isnan(error)
    assert all(math.isnan(x) for x in mean_and_error([math.nan]))
    assert all(math.isnan(x) for x in mean_and_error(np.empty((0, 3))))


def test_mean_of_runs_with_a_value_in_other_cases():
    """The first run has no value in the last case, and must not count the 0 of the second run."""
    runs = np.array([[0.5, 0.7, math.nan], [0.6, 0.8, 0.0], [math.nan] * 3])
    assert mean_and_error(runs)[0] == pytest.approx((0.6 + 1.4 / 3) / 2)
    whole = runs[:2, :2]
    assert mean_and_error(whole) == pytest.approx(mean_and_error(whole.mean(0)))
    generator = np.random.default_rng(5)
    many = generator.random((3, 400)) + generator.random(400)
    many[generator.random((3, 400)) < 0.2] = math.nan
    drawn = many[:, generator.integers(0, 400, (2000, 400))]
    spread = np.nanmean(drawn, 2).mean(0).std()
    assert mean_and_error(many)[1] == pytest.approx(spread, rel=0.06)


def test_holm_by_hand():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "none": math.nan})
    assert corrected["a"] == pytest.approx(0.03) and corrected["c"] == corrected["b"] == pytest.approx(0.06)
    assert math.isnan(corrected["none"]) and list(corrected) == ["a", "b", "c", "none"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_paired_tests_equal_those_of_scipy():
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


def test_cases_without_a_difference_count_in_the_ranks():
    """In Pratt's method, ties take the lowest ranks, which increases the ranks of the others."""
    baseline = np.linspace(0.25, 0.75, 60)
    difference = np.arange(-14, 46) / 1024 * (np.arange(60) % 3 > 0)
    found = paired_tests({"ties": baseline + difference}, baseline)["ties"]
    exact = (baseline + difference) - baseline
    pratt, wilcoxon = (stats.wilcoxon(exact, zero_method=method).pvalue for method in ("pratt", "wilcox"))
    assert found.wilcoxon == pytest.approx(pratt) != pytest.approx(wilcoxon)


@pytest.mark.parametrize("cases", [2, 5, 9, 14])
def test_the_smallest_p_of_wilcoxon(cases):
    assert least_wilcoxon(5) == 0.0625 and least_wilcoxon(0) == 1
    baseline = np.zeros(cases)
    best = paired_tests({"best": baseline + 0.1 + np.arange(cases) / 100}, baseline)["best"]
    assert best.wilcoxon == pytest.approx(least_wilcoxon(cases))
    tied = paired_tests({"tied": np.round(np.linspace(0, 0.3, cases), 1)}, baseline)["tied"]
    assert tied.wilcoxon >= least_wilcoxon(cases)


def test_undefined_tests_are_nan():
    baseline = np.array([0.5, 0.6, 0.7])
    one = paired_tests({"one": np.array([math.nan, math.nan, 1.0])}, baseline)["one"]
    assert math.isnan(one.t) and math.isnan(one.wilcoxon) and math.isnan(one.wilcoxon_holm)
    for shift in (0.25, 0.1):  # the second is not the same in each case, up to rounding
        constant = paired_tests({"shift": baseline + shift}, baseline)["shift"]
        assert constant.wilcoxon == pytest.approx(0.25) and math.isnan(constant.t)  # no spread, no t-test


def test_a_method_that_is_the_baseline_counts_in_the_correction():
    baseline = np.array([0.5, 0.6, 0.7])
    tests = paired_tests({"equal": baseline.copy(), "shift": baseline + 0.25}, baseline)
    assert math.isnan(tests["equal"].t) and tests["equal"].wilcoxon == tests["equal"].wilcoxon_holm == 1
    assert tests["shift"].wilcoxon_holm == pytest.approx(2 * 0.25)


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).standard_normal(200)
    interval = mean_interval(values)
    mean, error = mean_and_error(values)
    assert interval.value == pytest.approx(mean)
    assert (interval.low, interval.high) == (
        pytest.approx(mean - 1.96 * error, abs=0.02),
        pytest.approx(mean + 1.96 * error, abs=0.02),
    )
    assert mean_interval(values) == interval  # the draws are seeded
    assert math.isnan(mean_interval([math.nan]).value)


def test_gap_closed():
    baseline, teacher = np.array([0.4, 0.5, 0.6, 0.7]), np.array([0.8, 0.7, 0.8, 0.9])
    half = gap_closed((baseline + teacher) / 2, baseline, teacher)
    assert (half.value, half.low, half.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert gap_closed(teacher, baseline, teacher).value == pytest.approx(1)
    assert gap_closed(baseline, baseline, teacher).value == 0
    assert math.isnan(gap_closed(teacher, baseline, baseline).value)
    holes = np.array([math.nan, 0.6, 0.7, 0.8])
    assert gap_closed(holes, baseline, teacher).value == pytest.approx((0.7 - 0.55) / (0.8 - 0.55))
    assert math.isnan(gap_closed(np.full(4, math.nan), baseline, teacher).value)


def test_draws_without_a_value_are_left_out():
    interval = bootstrap(lambda mean: np.where(mean <= 1, math.nan, mean), [np.array([0.0, 1.0, 2.0])])
    assert math.isnan(interval.value) and 1 < interval.low <= interval.high <= 2


def test_an_interval_over_runs_contains_their_spread():
    """With equal cases, only the runs vary; with many runs, the interval is the normal one."""
    means = np.random.default_rng(2).standard_normal(100)
    runs = np.repeat(means[:, None], 5, axis=1)
    interval = mean_interval(runs)
    mean, error = mean_and_error(means)
    assert interval.value == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.03)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.03)
    alone = mean_interval(runs[0])
    assert (alone.low, alone.high) == (pytest.approx(alone.value), pytest.approx(alone.value))


def test_runs_of_a_seed_are_drawn_together():
    baseline = np.random.default_rng(3).random((3, 20))
    difference = mean_difference(baseline + 0.125, baseline)
    assert (difference.value, difference.low, difference.high) == tuple(pytest.approx(0.125) for _ in range(3))
    assert mean_interval(baseline).high - mean_interval(baseline).low > 0.05
    half = gap_closed(baseline + 0.125, baseline, baseline.mean(0) + 0.25)  # the teacher has one run
    assert half.value == pytest.approx(0.5) and half.low < 0.5 < half.high
    with pytest.raises(ValueError, match="the methods have 2 and 3 runs"):
        mean_difference(baseline, baseline[:2])


def test_runs_without_a_value_in_a_case():
    runs = np.array([[0.5, math.nan, math.nan], [0.7, 0.2, math.nan]])
    assert mean_interval(runs).value == pytest.approx(mean_and_error(runs)[0]) == (0.5 + 0.45) / 2
    np.testing.assert_allclose(mean_of_runs(runs), [0.6, 0.2, math.nan])


def test_a_method_that_leaves_out_an_absent_structure_differs_from_one_that_draws_it():
    """Two cases lack the structure, and each seed of one method draws it there less often than the other's."""
    right = np.array([[0.8, 0.8, math.nan, math.nan], [0.8, 0.8, 0.0, 0.0]])
    wrong = np.array([[0.8, 0.8, 0.0, math.nan], [0.8, 0.8, math.nan, 0.0]])
    assert mean_difference(right, wrong).value == pytest.approx(0.6 - 1.6 / 3)
    assert mean_difference(right[0], wrong[0]).value == pytest.approx(0.8 - 1.6 / 3)
    assert gap_closed(right, wrong, np.full(4, 0.8)).value == pytest.approx((0.6 - 1.6 / 3) / (0.8 - 1.6 / 3))


def test_many_cases_are_drawn_in_parts():
    """The result is the same as with all draws at once."""
    values = np.random.default_rng(4).random(150)
    whole = mean_interval(values)
    drawn = values[np.random.default_rng(1234).integers(0, 150, (10_000, 150))].mean(1)
    assert (whole.low, whole.high) == tuple(pytest.approx(limit) for limit in np.percentile(drawn, (2.5, 97.5)))
