"""The report of a study: one self-contained HTML file, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.page import image, whole_page
from nnunet_kd.evaluation.pooled import CASES_NOTE, POOLED_NOTE, case_table, pooled_table
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.slices import SLICES_NOTE, slice_table
from nnunet_kd.evaluation.statistics import mean_and_error
from nnunet_kd.evaluation.summary import (
    MEANS,
    OTHER_METRICS,
    SEEDS,
    cautions,
    comparison_table,
    metric_table,
    seed_table,
    tests_note,
)
from nnunet_kd.evaluation.table import Table
from nnunet_kd.evaluation.text import in_figure, in_html, in_markdown
from nnunet_kd.storage.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: The title of the page.
        facts: The facts about the comparison, as name and text.
        warnings: The warnings that a reader needs before any number, such as leakage and failed methods. The report
            adds those that follow from the rows, such as too few cases.
        rows: The metrics of every case and seed.
        baseline: The method that the others are compared with.
        teacher: The teacher's name among the methods, or ``None`` without a teacher.
        costs: The cost of each method's network.
        curves: The logged values of each method: method -> name -> one value per epoch.
        pictures: The figures by caption.
        slices: The metrics of every slice, of 2-D networks on volumes.
    """

    title: str
    facts: Mapping[str, str]
    warnings: Sequence[str]
    rows: Sequence[Row]
    baseline: str
    teacher: str | None
    costs: Mapping[str, Measured]
    curves: Curves = field(default_factory=dict)
    pictures: Mapping[str, Figure] = field(default_factory=dict)
    slices: Sequence[Row] = ()


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.html`` and ``report.md``, each complete or absent; names are escaped in both."""
    write_whole(folder / "report.html", _in_html(report))
    write_whole(folder / "report.md", report_in_markdown(report))
    return [folder / "report.html", folder / "report.md"]


def report_in_markdown(report: Report) -> str:
    """Return the text of ``report.md``."""
    lines = [f"# {in_markdown(report.title)}", *(f"**{in_markdown(warning)}**" for warning in _warnings(report))]
    lines.append("\n".join(f"- {in_markdown(fact)}" for fact in _facts(report)))
    for title, note, tables in _sections(report):
        lines += [f"## {title}", *([in_markdown(note)] if note else []), *(table.markdown() for table in tables)]
    return "\n\n".join(lines) + "\n"


def _in_html(report: Report) -> str:
    """Return the text of ``report.html`` with its figures."""
    page = [f"<h1>{in_html(report.title)}</h1>"]
    page += [f'<p class="warning">{in_html(warning)}</p>' for warning in _warnings(report)]
    page.append("<ul>" + "".join(f"<li>{in_html(fact)}</li>" for fact in _facts(report)) + "</ul>")
    for title, note, tables in _sections(report):
        page += [f"<h2>{in_html(title)}</h2>", f"<p>{in_html(note)}</p>" if note else ""]
        page += [f'<div class="scroll">{table.html()}</div>' for table in tables]
    figures = {**report.pictures}
    if report.costs:
        figures["Accuracy against cost"] = draw_accuracy_against_cost(Scores(report.rows), report.costs)
    if report.curves:
        figures["Loss terms, unweighted, mean per epoch"] = draw_curves(report.curves)
    for caption, figure in figures.items():
        page += [f"<h2>{in_html(caption)}</h2>", image(figure, caption)]
    return whole_page(report.title, page)


def _warnings(report: Report) -> list[str]:
    return [*report.warnings, *cautions(Scores(report.rows), report.baseline, report.teacher)]


def _facts(report: Report) -> list[str]:
    return [f"{name}: {text}" for name, text in report.facts.items()]


def _sections(report: Report) -> list[tuple[str, str, list[Table]]]:
    scores = Scores(report.rows)
    sections = [
        (
            "Accuracy",
            MEANS.format(cases=len(scores.cases)),
            [metric_table(scores, [metric]) for metric in ("dice", "hd95", "nsd")],
        ),
    ]
    if len(scores.methods) > 1:
        table = comparison_table(scores, report.baseline, report.teacher)
        sections.append(("Do these networks differ?", tests_note(scores, report.baseline, report.teacher), [table]))
    seeds = seed_table(scores, report.baseline)
    if seeds is not None:
        sections.append(("Seeds", SEEDS.format(baseline=report.baseline), [seeds]))
    if report.costs:
        device = next(iter(report.costs.values())).device
        note = (
            f"Seconds and FLOPs per case are those of the network in nnU-Net's predictor with mirroring, on {device}. "
            "FLOPs count convolutions and matrix products."
        )
        sections.append(("Cost", note, [cost_table(report.costs, report.teacher)]))
    sections.append(("Further metrics", "", [metric_table(scores, [metric]) for metric in OTHER_METRICS]))
    for title, note, pooled in (
        ("All cases together", POOLED_NOTE, pooled_table(report.rows)),
        ("All classes together, and whole cases", CASES_NOTE, case_table(report.rows)),
    ):
        sections += [] if pooled is None else [(title, note, [pooled])]
    sections += [("Slices", SLICES_NOTE, [slice_table(report.slices)])] if report.slices else []
    return sections


def cost_table(costs: Mapping[str, Measured], teacher: str | None) -> Table:
    """Return a table of the cost of every network, with its ratio to the teacher's."""
    header = [
        "method",
        "parameters (M)",
        "GFLOPs per patch",
        "GFLOPs per case",
        "peak memory (MiB)",
        "seconds per case",
    ]
    rows = []
    reference = costs.get(teacher) if teacher is not None else None
    for method, cost in costs.items():
        cells = [
            (cost.network.parameters, 1e6, None if reference is None else reference.network.parameters),
            (cost.network.flops, 1e9, None if reference is None else reference.network.flops),
            (cost.flops, 1e9, None if reference is None else reference.flops),
            (cost.peak_bytes, 2**20, None if reference is None else reference.peak_bytes),
            (cost.seconds, 1, None if reference is None else reference.seconds),
        ]
        rows.append([method, *(_beside(value / unit, value, other, method == teacher) for value, unit, other in cells)])
    return Table(header, rows)


def _beside(shown: float, value: float, teacher: float | None, is_teacher: bool) -> str:
    """Return a figure as text and, for a student, its ratio to the teacher's figure."""
    text = f"{shown:,.3f}" if shown < 100 else f"{shown:,.0f}"
    if is_teacher or not teacher or not value:
        return text
    return f"{text} (1/{teacher / value:.1f})" if value <= teacher else f"{text} ({value / teacher:.1f} times)"


def draw_accuracy_against_cost(scores: Scores, costs: Mapping[str, Measured]) -> Figure:
    """Draw mean Dice against parameters and against FLOPs per case, with one point per method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(11, 4.2))
    quantities = {
        "parameters": {method: float(cost.network.parameters) for method, cost in costs.items()},
        "FLOPs per case": {method: cost.flops for method, cost in costs.items()},
    }
    for axes, (label, quantity) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
        for number, method in enumerate(costs):
            dice = 100 * mean_and_error(scores.runs(method))[0]
            colour = f"C{number % 10}"
            axes.scatter(
                quantity[method], dice, s=50, color=colour, label=f"{in_figure(method)} ({dice:.1f})", zorder=3
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(EngFormatter())
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.set_xlabel(label)
        axes.set_ylabel("mean Dice (%)")
        axes.grid(True, alpha=0.3)
    figure.axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9, frameon=False)
    figure.tight_layout()
    return figure


def draw_curves(curves: Curves) -> Figure:
    """Draw one panel per logged name, with one line per method that has it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for logged in curves.values() for name in logged))
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.9 * height))
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for number, (method, logged) in enumerate(curves.items()):
            if name in logged:
                epochs = range(1, len(logged[name]) + 1)
                axes.plot(
                    epochs, logged[name], color=f"C{number % 10}", label=in_figure(method), marker=".", markersize=4
                )
        axes.set_title(in_figure(name), fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.tight_layout()
    return figure
