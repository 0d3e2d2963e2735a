"""Figures of the kept runs for the study's sentences: per cent, points of Dice, millimetres."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.parts import BASELINE, METHODS
from benchmarks.study.record import STUDENT, Record
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.scores import Comparison, Scores, compare
from nnunet_kd.evaluation.statistics import mean_and_error, paired_tests
from nnunet_kd.study.runs import TEACHER

Numbers = NDArray[np.float64]  # one per seed

AVERAGED, RECIPE = "NoKD, averaged", "KD"
LOSSES = [name for name in METHODS if name not in (BASELINE, AVERAGED, RECIPE)]
LEVEL = 0.05  # points of Dice below which a difference is written as 0.0
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class StaleFindingError(ValueError):
    """The kept runs do not show what a sentence of the study says."""


def require(condition: bool | np.bool_, claim: str) -> None:
    """Refuse a sentence that the kept runs contradict.

    Args:
        condition: Whether the runs show what the sentence says.
        claim: The content of the sentence in a few words.

    Raises:
        StaleFindingError: If they do not.
    """
    if not condition:
        raise StaleFindingError(f"the kept runs do not show that {claim}: rewrite that sentence in benchmarks/study")


class PartFigures:
    """The figures of one finished part.

    Args:
        record: The runs of the part, with every seed complete.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.baseline = record, record.part.baseline

    @cached_property
    def scores(self) -> Scores:
        """The metrics of every run."""
        return Scores(self.record.all_rows())

    @cached_property
    def compared(self) -> dict[str, Comparison]:
        """The comparison of every row with the part's baseline."""
        return compare(self.scores, self.baseline, TEACHER)

    def dice(self, row: str) -> Numbers:
        """Return the mean Dice of each seed (%)."""
        return 100 * np.array([mean_and_error(run)[0] for run in self.scores.runs(row)])

    def hd95(self, row: str, structure: str | None = None) -> Numbers:
        """Return the HD95 of each seed (mm), for one structure or averaged over the structures of each case."""
        return np.array([mean_and_error(run)[0] for run in self.scores.runs(row, "hd95", structure)])

    def hd95_by_structure(self, row: str) -> Numbers:
        """Return the HD95 (mm) as ``(structures, seeds)``."""
        return np.array([self.hd95(row, structure) for structure in self.scores.structures])

    def gains(self, row: str, over: str | None = None) -> Numbers:
        """Return the Dice of a row minus that of another (by default the baseline) for each seed (points)."""
        return self.dice(row) - self.dice(over or self.baseline)

    def gain(self, row: str, over: str | None = None, seeds: slice = slice(None)) -> float:
        """Return the mean of :meth:`gains` over some of the seeds (points)."""
        return float(self.gains(row, over)[seeds].mean())

    def gap(self, row: str, seeds: slice = slice(None)) -> float:
        """Return the share of the gap between the student alone and the teacher that a row closes (%)."""
        lacking = self.dice(TEACHER)[0] - self.dice(BASELINE)[seeds].mean()
        return 100 * self.gain(row, BASELINE, seeds) / float(lacking)

    def p_over_seeds(self, row: str) -> float:
        """Return the two-sided p of the t-test paired over the seeds, not corrected for the number of methods."""
        return paired_tests({row: self.dice(row)}, self.dice(self.baseline))[row].t

    def cost_ratio(self, quantity: Callable[[Measured], float]) -> float:
        """Return the teacher's cost divided by the student's."""
        costs = self.record.costs()
        if costs is None:
            raise StaleFindingError(f"the costs of {self.record.part.title} were not measured")
        return quantity(costs[TEACHER]) / quantity(costs[STUDENT])

    @property
    def parameters(self) -> float:
        """The teacher's number of parameters divided by the student's."""
        return self.cost_ratio(lambda cost: cost.network.parameters)

    @property
    def flops(self) -> float:
        """The teacher's FLOPs divided by the student's."""
        return self.cost_ratio(lambda cost: cost.network.flops)


def listed(words: Iterable[str]) -> str:
    """Join words as ``"a, b and c"``."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def each(numbers: Iterable[float], digits: int = 1) -> str:
    """Format numbers without a sign, for a sentence that gives their direction in words.

    Raises:
        StaleFindingError: If a number is negative.
    """
    numbers = [float(number) for number in numbers]
    require(min(numbers) >= -0.5 * 10**-digits, f"{listed(f'{number:.3f}' for number in numbers)} are not negative")
    return listed(f"{abs(number):.{digits}f}" for number in numbers)


def signed(number: float, digits: int = 1) -> str:
    """Format a number with its sign; zero has none."""
    rounded = round(float(number), digits) + 0.0
    return f"{rounded:+.{digits}f}" if rounded else f"{rounded:.{digits}f}"


def each_signed(numbers: Iterable[float]) -> str:
    """Format several numbers with their signs."""
    return listed(map(signed, numbers))


def span(numbers: NDArray[np.float64]) -> str:
    """Format a range as ``"1.7 to 1.8"``, or as one number if both ends are the same."""
    low, high = f"{numbers.min():.1f}", f"{numbers.max():.1f}"
    return low if low == high else f"{low} to {high}"


def losses_below(part: PartFigures) -> str:
    """Return a sentence about the losses that are below the baseline on average, the worst first."""
    gains = {loss: part.gain(loss) for loss in LOSSES if loss != "DCD"}
    below = sorted((loss for loss in gains if gains[loss] <= -LEVEL), key=gains.__getitem__)
    level = [loss for loss in gains if abs(gains[loss]) < LEVEL]
    require(bool(below), f"any loss is below {BASELINE} on average")

    def said(loss: str, unit: str = "") -> str:
        return f"{-gains[loss]:.1f}{unit}" + (" (in every seed)" if (part.gains(loss) < 0).all() else "")

    worst, *others = below
    sentence = f"On average {worst} is {said(worst, ' points')} below {BASELINE}"
    if others:
        sentence += f", {listed(f'{loss} {said(loss)}' for loss in others)}"
    ending = f"; {listed(level)} {'is' if len(level) == 1 else 'are'} level with it" if level else ""
    return f"{sentence}{ending}."
