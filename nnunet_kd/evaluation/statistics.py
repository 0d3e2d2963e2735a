"""Statistics of paired methods: every method has segmented the same cases, in one run or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]  # (cases,), or (runs, cases)

RESAMPLES = 10_000
AT_ONCE = 1_000_000  # numbers
SAME = 1e-12  # what rounding makes of differences that are all the same


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTests:
    """Two-sided p-values of paired differences. Not a number where a test is not defined.

    Attributes:
        t: Paired t-test.
        wilcoxon: Wilcoxon's signed rank test; cases without a difference are ranked too, their ranks belong to
            neither sign (Pratt).
        wilcoxon_holm: The same, corrected for the number of methods (Holm).
        cases: Cases both methods have a value for.
    """

    t: float
    wilcoxon: float
    wilcoxon_holm: float
    cases: int


def mean_and_error(values: Sequence[float] | Values) -> tuple[float, float]:
    """Mean over the values that are numbers, and its standard error over cases, s / sqrt(n).

    Of several runs, the mean of their means, each over the cases it has a value for. These can be others in each run:
    a structure that is rightly left out has none, and would count as wrong in all runs that one draws it in, were a
    case's values averaged first. The error is that of this mean, linearised in the cases.

    Args:
        values: ``(cases,)`` or ``(runs, cases)``.
    """
    runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
    there = np.isfinite(runs)
    there, runs = there[there.any(1)], runs[there.any(1)]
    if not runs.size:
        return math.nan, math.nan
    counts = there.sum(1, keepdims=True)
    means = np.where(there, runs, 0.0).sum(1, keepdims=True) / counts
    shares = np.where(there, (runs - means) / counts, 0.0).mean(0)  # of every case in the mean's deviation
    cases = int(there.any(0).sum())
    error = math.sqrt(cases / (cases - 1) * float((shares**2).sum())) if cases > 1 else math.nan
    return float(means.mean()), error


def mean_of_runs(values: Values) -> Values:
    """Mean over the runs ``(..., runs, cases)`` of those that have a value, case by case."""
    return _mean(values, -2)


def bootstrap(statistic: Callable[..., Values], samples: Sequence[Values], seed: int = 1234) -> Interval:
    """Percentile bootstrap over cases and, of samples that have several, over runs, of a statistic of their means.

    A sample's mean is that of :func:`mean_and_error`. Cases are drawn for all samples together, and so are runs, which
    are then averaged: those of one seed begin with the same weights and see the same batches. So the interval is about
    other cases and, where there are several runs, about other trainings too. Of few runs it is too narrow: where cases
    do not differ it goes from the least run to the greatest, which holds the mean of all trainings for two runs in one
    of two studies, for three in three of four. Cases in which no sample has a value are left out.

    Args:
        statistic: Of as many arrays ``(draws,)`` as there are samples, their means, one number a draw. Draws for which
            it is not a number are left out.
        samples: One array a method, ``(cases,)`` or ``(runs, cases)``, of the same cases and the same seeds. One run
            is drawn every time.
        seed: Of the draws.

    Raises:
        ValueError: For samples of different numbers of runs, other than one.
    """
    runs = [np.atleast_2d(np.asarray(sample, dtype=np.float64)) for sample in samples]
    several = {len(sample) for sample in runs} - {1}
    if len(several) > 1:
        raise ValueError(f"there are {' and '.join(map(str, sorted(several)))} runs: they cannot be drawn together")
    usable = np.any([np.isfinite(sample).any(0) for sample in runs], axis=0)
    cases = int(usable.sum())
    if not cases:
        return Interval(math.nan, math.nan, math.nan)
    runs = [np.ascontiguousarray(sample[:, usable]) for sample in runs]
    value = float(statistic(*(_mean_of_means(sample[None]) for sample in runs))[0])
    count = max(several, default=1)
    numbers = statistic(*(_drawn_means(sample.tobytes(), len(sample), count, seed) for sample in runs))
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(numbers, (2.5, 97.5))
    return Interval(value, float(low), float(high))


@lru_cache(256)  # a method is in several intervals, with the same draws
def _drawn_means(sample: bytes, runs: int, count: int, seed: int) -> Values:
    """Means of one sample in every draw of :func:`bootstrap`, ``(RESAMPLES,)``.

    Args:
        sample: ``(runs, cases)`` in float64.
        runs: Of the sample.
        count: Of the runs that are drawn from the sample that has most.
        seed: Of the draws.
    """
    values = np.frombuffer(sample).reshape(runs, -1)
    cases = values.shape[1]
    of_cases, of_runs = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    drawn = []
    left = RESAMPLES
    while left:
        draws = min(left, max(1, AT_ONCE // (cases * count)))
        left -= draws
        chosen = of_cases.integers(0, cases, (draws, 1, cases))
        trained = of_runs.integers(0, count, (draws, count, 1))
        drawn.append(_mean_of_means(values[trained if runs > 1 else 0, chosen]))
    means = np.concatenate(drawn)
    means.setflags(write=False)  # it is shared
    return means


def mean_interval(values: Values) -> Interval:
    """The mean, with its interval."""
    return bootstrap(lambda mean: mean, [values])


def mean_difference(values: Values, baseline: Values) -> Interval:
    """The difference of the means, with its interval.

    Each is over all the cases its method has a value for: where one rightly leaves out a structure that the other
    draws, the other's 0 counts.
    """
    return bootstrap(np.subtract, [values, baseline])


def gap_closed(method: Values, baseline: Values, teacher: Values) -> Interval:
    """(student - baseline) / (teacher - baseline) of the means, with its interval.

    1: as good as the teacher; 0: as the baseline. Where teacher and baseline are equal there is no gap and the value
    is not a number. The interval is that of the ratio, cases drawn together: it is wide where the gap is small against
    the spread of cases and runs.
    """

    def ratio(student: Values, without: Values, teaching: Values) -> Values:
        gap = teaching - without
        return np.divide(student - without, gap, out=np.full_like(gap, math.nan), where=gap != 0)

    return bootstrap(ratio, [method, baseline, teacher])


def _mean_of_means(values: Values) -> Values:
    """Over the cases of every run, then over the runs ``(..., runs, cases)``."""
    return _mean(_mean(values, -1), -1)


def _mean(values: Values, axis: int) -> Values:
    """Of the numbers along an axis; not a number where there are none."""
    numbers = np.isfinite(values)
    count = numbers.sum(axis)
    total = np.where(numbers, values, 0.0).sum(axis)
    mean: Values = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return mean


def paired_tests(methods: Mapping[str, Values], baseline: Values) -> dict[str, PairedTests]:
    """Every method against one baseline, over the cases both have a value for, one value a case.

    Args:
        methods: ``(cases,)`` each.
        baseline: ``(cases,)``.
    """
    from scipy import stats

    uncorrected: dict[str, tuple[float, float, int]] = {}
    for name, values in methods.items():
        usable = np.isfinite(values) & np.isfinite(baseline)
        difference = (values - baseline)[usable]
        if difference.size < 2:
            uncorrected[name] = (math.nan, math.nan, difference.size)
            continue
        varies = np.ptp(difference) > SAME
        t = float(stats.ttest_1samp(difference, 0.0).pvalue) if varies else math.nan
        rank = float(stats.wilcoxon(difference, zero_method="pratt").pvalue) if np.any(difference) else 1.0
        uncorrected[name] = (t, rank, difference.size)
    corrected = holm({name: p[1] for name, p in uncorrected.items()})
    return {name: PairedTests(t, rank, corrected[name], cases) for name, (t, rank, cases) in uncorrected.items()}


def least_wilcoxon(cases: int) -> float:
    """The smallest p that Wilcoxon's two-sided test can give: all differences have one sign, in 2 of 2^n ways."""
    return 2.0 ** (1 - cases) if cases else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction; entries that are not a number stay and do not count."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[name] = largest
    return corrected
