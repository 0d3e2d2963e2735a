"""Statistics of paired methods, all of which have segmented the same cases in one or several runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]  # (cases,), or (runs, cases)

RESAMPLES = 10_000
AT_ONCE = 1_000_000  # numbers that are drawn at once, which limits the memory
SAME = 1e-12  # the largest spread of equal differences after rounding


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTests:
    """Two-sided p-values of paired differences, which are NaN if a test is not defined.

    Attributes:
        t: The p-value of the paired t-test.
        wilcoxon: The p-value of Wilcoxon's signed rank test. Cases without a difference are ranked, but their ranks
            count for neither sign (Pratt).
        wilcoxon_holm: Wilcoxon's p-value after Holm's correction for the number of methods.
        cases: The number of cases for which both methods have a value.
    """

    t: float
    wilcoxon: float
    wilcoxon_holm: float
    cases: int


def mean_and_error(values: Sequence[float] | Values) -> tuple[float, float]:
    """Return the mean of the finite values and its standard error over cases, s / sqrt(n).

    For several runs, this is the mean of the runs' means, each of which is over the cases for which the run has a
    value. These cases can differ between runs, because a structure that a run rightly leaves out has no value. If the
    values of a case were averaged over the runs first, a structure that only one run draws would count as wrong in all
    of them. The standard error is that of the mean of means, linearised in the cases.

    Args:
        values: The values ``(cases,)`` or ``(runs, cases)``.
    """
    mean, shares, there = _linearised(values)
    return mean, _error(shares, there)


def class_mean_and_error(values: Values) -> tuple[float, float]:
    """Return the mean over classes, which is the mean of the classes' means, and its standard error over cases.

    Every class has the same weight, however many cases contain it; classes without any value do not count. The overall
    figures of DCD's Table 1 are such means: they follow from the classes of its Table 2. The standard error is that of
    the mean of means, linearised in the cases, so that it takes into account that the classes share their cases.

    Args:
        values: The values ``(classes, cases)`` or ``(classes, runs, cases)``. The mean of a class is that of
            :func:`mean_and_error`.
    """
    classes = [linear for linear in map(_linearised, values) if math.isfinite(linear[0])]
    if not classes:
        return math.nan, math.nan
    shares = np.mean([shares for _, shares, _ in classes], axis=0)
    there = np.any([there for _, _, there in classes], axis=0)
    return float(np.mean([mean for mean, _, _ in classes])), _error(shares, there)


def _linearised(values: Sequence[float] | Values) -> tuple[float, Values, NDArray[np.bool_]]:
    """Return the mean of :func:`mean_and_error`, each case's share in its deviation, and which cases have a value."""
    runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
    there = np.isfinite(runs)
    there, runs = there[there.any(1)], runs[there.any(1)]
    if not runs.size:
        return math.nan, np.zeros(runs.shape[1]), np.zeros(runs.shape[1], dtype=np.bool_)
    counts = there.sum(1, keepdims=True)
    means = np.where(there, runs, 0.0).sum(1, keepdims=True) / counts
    shares = np.where(there, (runs - means) / counts, 0.0).mean(0)
    return float(means.mean()), shares, np.asarray(there.any(0), dtype=np.bool_)


def _error(shares: Values, there: NDArray[np.bool_]) -> float:
    cases = int(there.sum())
    return math.sqrt(cases / (cases - 1) * float((shares**2).sum())) if cases > 1 else math.nan


def mean_of_runs(values: Values) -> Values:
    """Return the mean of each case over the runs ``(..., runs, cases)`` that have a value."""
    return _mean(values, -2)


def bootstrap(statistic: Callable[..., Values], samples: Sequence[Values], seed: int = 1234) -> Interval:
    """Bootstrap a statistic of the samples' means over cases and, if there are several runs, over runs.

    The mean of a sample is that of :func:`mean_and_error`. The same cases and the same runs are drawn for all samples,
    because the runs of one seed start from the same weights and see the same batches. The percentile interval thus
    covers other cases and, with several runs, other trainings. With few runs it is too narrow: if the cases did not
    differ, it would extend from the smallest run to the largest, which contains the mean of all trainings in one of two
    studies with two runs, and in three of four studies with three. Cases in which no sample has a value are left out.

    Args:
        statistic: A function of the samples' means, one array ``(draws,)`` per sample, that returns one number per
            draw. Draws for which the number is not finite are left out.
        samples: One array per method, ``(cases,)`` or ``(runs, cases)``, with the same cases and seeds. A method with a
            single run enters every draw with this run.
        seed: The seed of the draws.

    Raises:
        ValueError: If two samples have different numbers of runs, neither of which is one.
    """
    runs = [np.atleast_2d(np.asarray(sample, dtype=np.float64)) for sample in samples]
    several = {len(sample) for sample in runs} - {1}
    if len(several) > 1:
        raise ValueError(
            f"the methods have {' and '.join(map(str, sorted(several)))} runs, which cannot be drawn together: give "
            "every method one run or the same number of runs"
        )
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


@lru_cache(256)  # several intervals use the same draws of a method
def _drawn_means(sample: bytes, runs: int, count: int, seed: int) -> Values:
    """Return the mean of one sample in every draw of :func:`bootstrap`, ``(RESAMPLES,)``.

    Args:
        sample: The values ``(runs, cases)`` in float64.
        runs: The number of runs in the sample.
        count: The number of runs per draw, which is that of the sample with most runs.
        seed: The seed of the draws.
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
    means.setflags(write=False)  # the cached array is shared
    return means


def mean_interval(values: Values) -> Interval:
    """Return the mean with its bootstrap interval."""
    return bootstrap(lambda mean: mean, [values])


def mean_difference(values: Values, baseline: Values) -> Interval:
    """Return the difference of the means with its bootstrap interval.

    Each mean is over all cases for which its method has a value. If one method rightly leaves out a structure that the
    other draws, the other's 0 counts.
    """
    return bootstrap(np.subtract, [values, baseline])


def gap_closed(method: Values, baseline: Values, teacher: Values) -> Interval:
    """Return (student - baseline) / (teacher - baseline) of the means with its bootstrap interval.

    The value is 1 if the student is as good as the teacher and 0 if it is as good as the baseline. It is NaN if teacher
    and baseline are equal. The interval is that of the ratio, with the same cases drawn for all three; it is wide if
    the gap is small compared with the spread over cases and runs.
    """

    def ratio(student: Values, without: Values, teaching: Values) -> Values:
        gap = teaching - without
        return np.divide(student - without, gap, out=np.full_like(gap, math.nan), where=gap != 0)

    return bootstrap(ratio, [method, baseline, teacher])


def _mean_of_means(values: Values) -> Values:
    """Return the mean over the cases of every run, and then over the runs ``(..., runs, cases)``."""
    return _mean(_mean(values, -1), -1)


def _mean(values: Values, axis: int) -> Values:
    """Return the mean of the finite values along an axis, or NaN if there are none."""
    numbers = np.isfinite(values)
    count = numbers.sum(axis)
    total = np.where(numbers, values, 0.0).sum(axis)
    mean: Values = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return mean


def paired_tests(methods: Mapping[str, Values], baseline: Values) -> dict[str, PairedTests]:
    """Test every method against one baseline, over the cases for which both have a value.

    Args:
        methods: The values ``(cases,)`` of every method.
        baseline: The values ``(cases,)`` of the baseline.
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
    """Return the smallest p of Wilcoxon's two-sided test, that of equal signs, which 2 of 2^n assignments have."""
    return 2.0 ** (1 - cases) if cases else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Apply Holm's step-down correction; NaN entries are kept and do not count as tests."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[name] = largest
    return corrected
