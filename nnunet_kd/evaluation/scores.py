"""The scores of several methods on the same cases, and the comparison of each method with a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.statistics import (
    Interval,
    PairedTests,
    Values,
    gap_closed,
    mean_difference,
    mean_interval,
    mean_of_runs,
    paired_tests,
)


class Scores:
    """Metrics by method, run, structure and case, with the mean over the structures of each case.

    The mean of a case is over the structures that have a value in it, and all cases have the same weight. The runs of a
    method are its seeds.

    Args:
        rows: The rows of all methods, which must contain the same cases and structures for every method and seed.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.cases = list(dict.fromkeys(row.case for row in rows))
        self.structures = list(dict.fromkeys(row.structure for row in rows))
        self.seeds: dict[str, list[int | None]] = {}
        for method, seed in dict.fromkeys((row.method, row.seed) for row in rows):
            self.seeds.setdefault(method, []).append(seed)
        index = {(row.method, row.seed, row.structure, row.case): row.values for row in rows}
        self._values: dict[tuple[str, str | None, str], Values] = {}
        for method, seeds in self.seeds.items():
            for metric in METRICS:
                each = np.array(
                    [
                        [[index[method, seed, s, c][metric] for c in self.cases] for seed in seeds]
                        for s in self.structures
                    ]
                )
                for structure, values in zip(self.structures, each, strict=True):
                    self._values[method, structure, metric] = values
                self._values[method, None, metric] = mean_of_runs(each.swapaxes(0, 1))

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in the order of the rows."""
        return list(self.seeds)

    def runs(self, method: str, metric: str = "dice", structure: str | None = None) -> Values:
        """Return the values ``(runs, cases)`` of a structure, or of the mean of all structures; NaN if undefined."""
        return self._values[method, structure, metric]

    def classes(self, method: str, metric: str = "dice") -> Values:
        """Return the values ``(structures, runs, cases)`` of all structures; NaN if undefined."""
        return np.stack([self.runs(method, metric, structure) for structure in self.structures])

    def of(self, method: str, metric: str = "dice", structure: str | None = None) -> Values:
        """Return one value per case, the mean over the runs that have a value."""
        return mean_of_runs(self.runs(method, metric, structure))


@dataclass(frozen=True)
class Comparison:
    """The comparison of a method with a baseline, by the mean Dice of the structures.

    Attributes:
        dice: The mean Dice with its 95 % interval, as a fraction of 1.
        difference: The difference from the baseline with its 95 % interval.
        tests: The tests of this difference.
        gap: The fraction of the gap between baseline and teacher that the method closes. It is NaN if the interval of
            the teacher's difference is not above 0, because the ratio is then meaningless, and ``None`` without a
            teacher.
    """

    dice: Interval
    difference: Interval
    tests: PairedTests
    gap: Interval | None


def compare(scores: Scores, baseline: str, teacher: str | None = None) -> dict[str, Comparison]:
    """Compare every other method with the baseline; Holm's correction counts the students but not the teacher."""
    reference = scores.of(baseline)
    others = [method for method in scores.methods if method != baseline]
    students = {method: scores.of(method) for method in others if method != teacher}
    tests = paired_tests(students, reference)
    if teacher is not None:
        tests |= paired_tests({teacher: scores.of(teacher)}, reference)
    differences = {method: mean_difference(scores.runs(method), scores.runs(baseline)) for method in others}

    def gap(method: str) -> Interval | None:
        if teacher is None:
            return None
        if not differences[teacher].low > 0:
            return Interval(math.nan, math.nan, math.nan)
        return gap_closed(*map(scores.runs, (method, baseline, teacher)))

    return {
        method: Comparison(mean_interval(scores.runs(method)), differences[method], tests[method], gap(method))
        for method in others
    }
