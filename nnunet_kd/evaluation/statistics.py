"""Statistics over the cases of paired methods: every method has segmented the same cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval over cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTests:
    """Two-sided p-values of paired differences. Not a number where a test is not defined.

    Attributes:
        t: Paired t-test.
        wilcoxon: Wilcoxon's signed rank test; cases without a difference are split between both signs (Pratt).
        wilcoxon_holm: The same, corrected for the number of methods (Holm).
        cases: Cases both methods have a value for.
    """

    t: float
    wilcoxon: float
    wilcoxon_holm: float
    cases: int


def mean_and_error(values: Sequence[float] | Values) -> tuple[float, float]:
    """Mean and its standard error, s / sqrt(n), over the values that are numbers."""
    numbers = _numbers(np.asarray(values, dtype=np.float64))
    if not numbers.size:
        return math.nan, math.nan
    error = numbers.std(ddof=1) / math.sqrt(numbers.size) if numbers.size > 1 else math.nan
    return float(numbers.mean()), float(error)


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], cases: int, seed: int = 1234) -> Interval:
    """Percentile bootstrap over cases.

    Args:
        statistic: Value for the numbers of the drawn cases; draws for which it is not a number are left out.
        cases: How many there are.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = np.array([statistic(draw) for draw in generator.integers(0, cases, (RESAMPLES, cases))])
    drawn = drawn[np.isfinite(drawn)]
    value = float(statistic(np.arange(cases)))
    if not drawn.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float] | Values) -> Interval:
    """Mean over the cases that have a number, with its interval."""
    numbers = _numbers(np.asarray(values, dtype=np.float64))
    if not numbers.size:
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap(lambda draw: float(numbers[draw].mean()), numbers.size)


def gap_closed(method: Values, baseline: Values, teacher: Values) -> Interval:
    """(student - baseline) / (teacher - baseline) of the means, with its interval.

    Cases in which any of the three is not a number are left out. 1: as good as the teacher; 0: as the baseline.
    Where teacher and baseline are equal there is no gap and the value is not a number. The interval is that of the
    ratio, cases drawn together: it is wide where the gap is small against the spread of the cases.
    """
    usable = np.isfinite(method) & np.isfinite(baseline) & np.isfinite(teacher)
    method, baseline, teacher = method[usable], baseline[usable], teacher[usable]
    if not usable.any():
        return Interval(math.nan, math.nan, math.nan)

    def ratio(draw: NDArray[np.int64]) -> float:
        gap = float((teacher[draw] - baseline[draw]).mean())
        return float((method[draw] - baseline[draw]).mean()) / gap if gap else math.nan

    return bootstrap(ratio, method.size)


def paired_tests(methods: Mapping[str, Values], baseline: Values) -> dict[str, PairedTests]:
    """Every method against one baseline, case by case."""
    from scipy import stats

    uncorrected: dict[str, tuple[float, float, int]] = {}
    for name, values in methods.items():
        usable = np.isfinite(values) & np.isfinite(baseline)
        difference = (values - baseline)[usable]
        if difference.size < 2 or not np.any(difference):
            uncorrected[name] = (math.nan, math.nan, difference.size)
            continue
        t = float(stats.ttest_1samp(difference, 0.0).pvalue) if difference.std() else math.nan
        rank = float(stats.wilcoxon(difference, zero_method="pratt").pvalue)
        uncorrected[name] = (t, rank, difference.size)
    corrected = holm({name: p[1] for name, p in uncorrected.items()})
    return {name: PairedTests(t, rank, corrected[name], cases) for name, (t, rank, cases) in uncorrected.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction; entries that are not a number stay and do not count."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[name] = largest
    return corrected


def _numbers(values: Values) -> Values:
    return values[np.isfinite(values)]
