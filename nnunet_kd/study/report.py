"""The report of a study: one self-contained HTML file, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_kd.evaluation import page
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.page import Gallery
from nnunet_kd.evaluation.pooled import CASES_NOTE, POOLED_NOTE, case_table, pooled_table
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.evaluation.slices import SLICES_NOTE, slice_table
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
from nnunet_kd.evaluation.text import in_html, in_markdown
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.figures import (
    Curves,
    draw_accuracy_against_seconds,
    draw_curves,
    draw_differences,
    draw_pairs,
    draw_volumes,
)
from nnunet_kd.study.verdict import verdicts

UNFOLDED = ("Accuracy", "Do these networks differ?")  # sections of the page that are open at first
DIFFERENCES = "Difference from {baseline} in mean Dice, with 95 % intervals"
SECONDS = "Mean Dice, with 95 % intervals, against seconds per case; points of equal networks are drawn side by side"
PAIRS = "Dice of every case: lines lead from {baseline} to the other method; blue ones rise, red ones fall"
VOLUMES = (
    "Volumes of every case (Bland and Altman): difference from the reference's, in per cent of the mean of both; lines "
    "are the mean difference and, dashed, 1.96 standard deviations around it"
)
CURVES = "Loss terms"
CURVES_NOTE = "Unweighted, mean per epoch"


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
        pictures: The pictures of a few cases.
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
    pictures: Gallery | None = None
    slices: Sequence[Row] = ()


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.html`` and ``report.md``, each complete or absent; names are escaped in both."""
    write_whole(folder / "report.html", _in_html(report))
    write_whole(folder / "report.md", report_in_markdown(report))
    return [folder / "report.html", folder / "report.md"]


def report_in_markdown(report: Report) -> str:
    """Return the text of ``report.md``."""
    lines = [f"# {in_markdown(report.title)}"]
    lines.append("\n".join(f"- **{in_markdown(sentence)}**" for sentence in _verdicts(report)))
    lines += [f"**{in_markdown(warning)}**" for warning in _warnings(report)]
    lines.append("\n".join(f"- {in_markdown(fact)}" for fact in _facts(report)))
    for title, note, tables in _sections(report):
        lines += [f"## {title}", *([in_markdown(note)] if note else []), *(table.markdown() for table in tables)]
    return "\n\n".join(line for line in lines if line) + "\n"


def _in_html(report: Report) -> str:
    """Return the text of ``report.html``: what was found, charts, pictures, every case, and then the tables."""
    scores = Scores(report.rows)
    baseline, teacher = report.baseline, report.teacher
    several = len(scores.methods) > 1
    parts = [f"<h1>{in_html(report.title)}</h1>"]
    parts += [page.verdicts(_verdicts(report))] if several else []
    parts += [page.warning(text) for text in _warnings(report)]
    first, cases = {}, {}
    if several:
        compared = compare(scores, baseline, teacher)
        first[DIFFERENCES.format(baseline=baseline)] = draw_differences(compared, baseline, teacher)
        cases[PAIRS.format(baseline=baseline)] = draw_pairs(scores, baseline)
    if report.costs:
        first[SECONDS] = draw_accuracy_against_seconds(scores, report.costs, baseline, teacher)
    volumes = draw_volumes(report.rows, scores.methods, baseline, teacher)
    if volumes is not None:
        cases[VOLUMES] = volumes
    parts += [page.charts(first)] if first else []
    parts += [page.gallery(report.pictures)] if report.pictures is not None else []
    parts += ["<h2>Every case</h2>", page.charts(cases)] if cases else []
    parts.append("<h2>Tables</h2>")
    parts += [page.section(title, note, tables, title in UNFOLDED) for title, note, tables in _sections(report)]
    if report.curves:
        parts.append(page.folded_charts(CURVES, {CURVES_NOTE: draw_curves(report.curves)}))
    parts += ["<h2>About this comparison</h2>", page.facts(_facts(report))]
    return page.whole_page(report.title, parts)


def _verdicts(report: Report) -> list[str]:
    scores = Scores(report.rows)
    if len(scores.methods) < 2:
        return []
    compared = compare(scores, report.baseline, report.teacher)
    return verdicts(scores, compared, report.baseline, report.teacher, report.costs)


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
    """Return a table with one line per network: its methods, and its cost with the ratio to the teacher's."""
    header = [
        "network of",
        "parameters (M)",
        "GFLOPs per patch",
        "GFLOPs per case",
        "peak memory (MiB)",
        "seconds per case",
    ]
    rows = []
    reference = costs.get(teacher) if teacher is not None else None
    networks: dict[Measured, list[str]] = {}
    for method, cost in costs.items():
        networks.setdefault(cost, []).append(method)
    for cost, methods in networks.items():
        cells = [
            (cost.network.parameters, 1e6, None if reference is None else reference.network.parameters),
            (cost.network.flops, 1e9, None if reference is None else reference.network.flops),
            (cost.flops, 1e9, None if reference is None else reference.flops),
            (cost.peak_bytes, 2**20, None if reference is None else reference.peak_bytes),
            (cost.seconds, 1, None if reference is None else reference.seconds),
        ]
        own = teacher in methods
        rows.append([", ".join(methods), *(_beside(value / unit, value, other, own) for value, unit, other in cells)])
    return Table(header, rows)


def _beside(shown: float, value: float, teacher: float | None, is_teacher: bool) -> str:
    """Return a figure as text and, for a student, its ratio to the teacher's figure."""
    text = f"{shown:,.3f}" if shown < 100 else f"{shown:,.0f}"
    if is_teacher or not teacher or not value:
        return text
    return f"{text} (1/{teacher / value:.1f})" if value <= teacher else f"{text} ({value / teacher:.1f} times)"
