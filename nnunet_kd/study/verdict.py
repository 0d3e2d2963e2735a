"""What a study says of every method, in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.scores import Comparison, Scores
from nnunet_kd.evaluation.statistics import Interval, mean_interval

_ITS, _THEIRS = "its", "the teacher's"


def verdicts(
    scores: Scores,
    compared: Mapping[str, Comparison],
    baseline: str,
    teacher: str | None,
    costs: Mapping[str, Measured],
) -> list[str]:
    """Return one sentence about the baseline and the teacher, and one about every other method.

    Intervals are those of 95 %, as in the tables.

    Args:
        scores: The scores.
        compared: The comparison of every method with the baseline.
        baseline: The method that the others are compared with.
        teacher: The teacher's name among the methods, or ``None`` without a teacher.
        costs: The cost of each method's network.
    """
    cases = f"{len(scores.cases)} case{'s' if len(scores.cases) > 1 else ''}"
    seeds = max(len(seeds) for seeds in scores.seeds.values())
    over = f"Over {cases}" + (f" and {seeds} seeds" if seeds > 1 else "")
    means = f"{over}, the mean Dice of {baseline}, the baseline, is {_share(mean_interval(scores.runs(baseline)), 1)}"
    reference = costs.get(teacher) if teacher is not None else None
    if teacher is not None:
        means += f", and that of the teacher {_share(mean_interval(scores.runs(teacher)), 1)}"
    said = [f"{means}."]
    for method, result in compared.items():
        if method != teacher:
            said.append(f"{method} {_about(result, baseline, costs.get(method), reference)}.")
    gap = None if teacher is None else compared[teacher].gap
    if teacher is not None and gap is not None and math.isnan(gap.value):
        difference = _points(compared[teacher].difference)
        said.append(f"There is no gap to speak of: the teacher differs from {baseline} by {difference}.")
    return said


def _about(result: Comparison, baseline: str, cost: Measured | None, teacher: Measured | None) -> str:
    gap, difference = result.gap, result.difference
    if gap is not None and not math.isnan(gap.value):
        words = f"closes {_share(gap)} of the gap to the teacher{_size(cost, teacher, _ITS)}"
    elif math.isnan(difference.value):
        return f"cannot be compared with {baseline}: no case has a value"
    else:
        words = f"differs from {baseline} by {_points(difference)}{_size(cost, teacher, _THEIRS)}"
    by_chance = f"; the difference from {baseline} may be chance" if difference.low <= 0 <= difference.high else ""
    return words + by_chance


def _size(cost: Measured | None, teacher: Measured | None, whose: str) -> str:
    if cost is None or teacher is None:
        return ""
    ratio = teacher.network.parameters / cost.network.parameters
    if ratio < 1:
        return f" with {1 / ratio:.3g} times {whose} parameters"
    return f" with 1/{ratio:.3g} of {whose} parameters" if ratio > 1 else f" with {whose} number of parameters"


def _share(interval: Interval, digits: int = 0) -> str:
    """Return a share in per cent with its interval, as in ``59 % [42, 83]``."""
    value, low, high = (round(100 * number, digits) + 0.0 for number in (interval.value, interval.low, interval.high))
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def _points(interval: Interval) -> str:
    value, low, high = (round(100 * number, 1) + 0.0 for number in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}] points of Dice"
