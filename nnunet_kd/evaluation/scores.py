"""Metrics of several methods over the same cases, and how each method compares with a baseline."""

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
    """Metrics by method, run, structure and case, and the mean of a case's structures.

    The mean of a case is over the structures that have a value in it; cases weigh the same however many they have.
    A method's runs are its seeds.

    Args:
        rows: Of any number of methods that have the same cases and structures, all seeds of a method the same.
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
        """In the order of the rows."""
        return list(self.seeds)

    def runs(self, method: str, metric: str = "dice", structure: str | None = None) -> Values:
        """``(runs, cases)``, of a structure or the mean of all; not a number where there is none."""
        return self._values[method, structure, metric]

    def of(self, method: str, metric: str = "dice", structure: str | None = None) -> Values:
        """One value a case, the mean of the runs that have one."""
        return mean_of_runs(self.runs(method, metric, structure))


@dataclass(frozen=True)
class Comparison:
    """One method beside a baseline, by the mean Dice of the structures.

    Attributes:
        dice: Mean with its 95 % interval, fraction of 1.
        difference: To the baseline, likewise.
        tests: Of that difference.
        gap: Share of the gap between baseline and teacher that is closed, not a number where the teacher's interval is
            not above the baseline, since the ratio then says nothing; ``None`` without a teacher.
    """

    dice: Interval
    difference: Interval
    tests: PairedTests
    gap: Interval | None


def compare(scores: Scores, baseline: str, teacher: str | None = None) -> dict[str, Comparison]:
    """Every method but the baseline against it; Holm's correction is over the students, not the teacher."""
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
