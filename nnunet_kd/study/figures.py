"""The charts of a study's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_kd.evaluation.chart_style import (
    BASELINE,
    BLUE,
    VERMILLION,
    chart_style,
    colours_of_methods,
    label,
)
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Comparison, Scores
from nnunet_kd.evaluation.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[str, Sequence[float]]]

SIZE = (4.4, 3.4)  # inches; a page shows two charts side by side
APART = 1.03  # the factor between the seconds of methods with equal networks, so that their points do not coincide
AGREEMENT = 1.96  # standard deviations, for the limits of agreement of Bland and Altman (Lancet, 1986)


def draw_differences(compared: Mapping[str, Comparison], baseline: str, teacher: str | None) -> Figure:
    """Draw the difference of every method from the baseline in points of Dice, with its 95 % interval."""
    from matplotlib.figure import Figure

    colours = colours_of_methods(list(compared), baseline, teacher)
    with chart_style():
        figure = Figure(figsize=(SIZE[0], 1.1 + 0.5 * max(len(compared), 3)))
        axes = figure.subplots()
        axes.axvline(0, color=BASELINE, linewidth=1.5)
        for number, (method, result) in enumerate(compared.items()):
            value, low, high = (100 * one for one in _ends(result.difference))
            axes.plot([low, high], [number, number], color=colours[method], linewidth=2)
            axes.plot(value, number, color=colours[method], marker="D" if method == teacher else "o", markersize=8)
        axes.set_yticks(range(len(compared)), [label(method) for method in compared])
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.set_xlabel("difference in Dice (percentage points)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def draw_accuracy_against_seconds(
    scores: Scores, costs: Mapping[str, Measured], baseline: str, teacher: str | None
) -> Figure:
    """Draw the mean Dice of every method with its 95 % interval against the seconds per case."""
    from matplotlib.figure import Figure

    colours = colours_of_methods(list(costs), baseline, teacher)
    same: dict[float, list[str]] = {}
    for method, cost in costs.items():
        same.setdefault(cost.seconds, []).append(method)
    with chart_style():
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        for seconds, methods in same.items():
            for number, method in enumerate(methods):
                value, low, high = (100 * one for one in _ends(mean_interval(scores.runs(method))))
                place = seconds * APART ** (number - (len(methods) - 1) / 2)
                axes.plot([place, place], [low, high], color=colours[method], linewidth=2)
                marker = "D" if method == teacher else "o"
                axes.plot(place, value, color=colours[method], marker=marker, markersize=8, linestyle="")
        axes.set_xscale("log")
        places = [cost.seconds for cost in costs.values()]
        axes.set_xlim(min(places) / 1.6, max(places) * 1.6)
        _few_ticks(axes)
        axes.set_xlabel("seconds per case")
        axes.set_ylabel("mean Dice (%)")
        axes.grid()
        _legend(figure, list(costs), colours)
    return figure


def draw_pairs(scores: Scores, baseline: str) -> Figure:
    """Draw one panel per method, with one line per case from the baseline's Dice to the method's."""
    methods = [method for method in scores.methods if method != baseline]
    before = 100 * scores.of(baseline)
    figure, panels = _panels(len(methods), share=True)
    with chart_style():
        for axes, method in zip(panels, methods, strict=True):
            after = 100 * scores.of(method)
            for start, end in zip(before, after, strict=True):
                if math.isfinite(start) and math.isfinite(end):
                    colour = BLUE if end > start else VERMILLION if end < start else BASELINE
                    axes.plot([0, 1], [start, end], color=colour, marker="o", markersize=3, linewidth=1, alpha=0.75)
            better, worse = int((after > before).sum()), int((after < before).sum())
            names = label(baseline), label(method)
            if max(map(len, names)) > 12:  # they would overlap beside each other
                axes.set_xticks([0, 1], [names[0], ""])
                axes.set_xlabel(names[1], loc="right")
            else:
                axes.set_xticks([0, 1], names)
            axes.set_xlim(-0.3, 1.3)
            axes.set_title(f"{better} better, {worse} worse", fontsize=9)
            axes.set_ylabel("Dice (%)")
            axes.grid(axis="y")
    return figure


def draw_volumes(rows: Sequence[Row], methods: Sequence[str], baseline: str, teacher: str | None) -> Figure | None:
    """Draw a plot of Bland and Altman for every structure: the difference of the volumes against their mean.

    Volumes are counted in voxels. Differences are shares of the mean of both volumes, because the voxels of two cases
    need not have the same size; a structure that only one of the two has differs by 200 %. Of several seeds, every
    segmentation is a point.

    Returns:
        The figure, or ``None`` if the voxels of a case were not counted.
    """
    if any(row.confusion is None for row in rows):
        return None
    structures = list(dict.fromkeys(row.structure for row in rows))
    colours = colours_of_methods(methods, baseline, teacher)
    figure, panels = _panels(len(structures), share=False)
    with chart_style():
        for axes, structure in zip(panels, structures, strict=True):
            axes.axhline(0, color=BASELINE, linewidth=1)
            for method in methods:
                means, differences = _volumes(
                    [row for row in rows if (row.method, row.structure) == (method, structure)]
                )
                axes.plot(means, differences, color=colours[method], marker="o", markersize=4, linestyle="", alpha=0.8)
                if len(means) > 1:
                    middle = float(np.mean(differences))
                    spread = AGREEMENT * float(np.std(differences, ddof=1))
                    for end, width in ((middle, 1.6), (middle - spread, 0.8), (middle + spread, 0.8)):
                        style = "-" if end == middle else "--"
                        axes.axhline(end, color=colours[method], linewidth=width, linestyle=style, alpha=0.8)
            axes.set_title(label(structure), fontsize=9)
            axes.set_xscale("log")
            _few_ticks(axes)
            axes.set_xlabel("mean volume (voxels)")
            axes.set_ylabel("difference (%)")
            axes.grid()
        _legend(figure, methods, colours)
    return figure


def _volumes(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return the means of the volumes of prediction and reference, and their differences in per cent of the means."""
    means, differences = [], []
    for row in rows:
        assert row.confusion is not None
        found = row.confusion.true_positives + row.confusion.false_positives
        real = row.confusion.true_positives + row.confusion.false_negatives
        if found + real:
            means.append((found + real) / 2)
            differences.append(200 * (found - real) / (found + real))
    return means, differences


def draw_curves(curves: Curves) -> Figure:
    """Draw one panel per logged name, with one line per method that has it."""
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for logged in curves.values() for name in logged))
    colours = colours_of_methods(list(curves), next(iter(curves)), None)
    figure, panels = _panels(len(names), share=False)
    with chart_style():
        for axes, name in zip(panels, names, strict=True):
            for method, logged in curves.items():
                if name in logged:
                    epochs = range(1, len(logged[name]) + 1)
                    axes.plot(epochs, logged[name], color=colours[method], marker=".", markersize=4)
            axes.set_title(label(name), fontsize=9)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid()
        _legend(figure, list(curves), colours)
    return figure


def _panels(count: int, share: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with a number of panels in at most two columns, which stay legible on a narrow screen."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    lines = math.ceil(count / columns)
    with chart_style():
        figure = Figure(figsize=(SIZE[0], 2.6 * lines + 0.4))
        panels = list(figure.subplots(lines, columns, squeeze=False, sharey=share).ravel())
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _legend(figure: Figure, methods: Sequence[str], colours: Mapping[str, str]) -> None:
    """Draw the colours of the methods below all panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[method], marker="o", label=label(method)) for method in methods]
    columns = min(len(handles), 3)
    lines = max(method.count("\n") + 1 for method in map(label, methods))
    figure.set_figheight(figure.get_figheight() + 0.14 * lines * math.ceil(len(methods) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)


def _few_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with 1, 2 and 5 of every decade as far as they fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
