"""The study's page, its picture, and its section in the README."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from benchmarks.study.figures import LOSSES, WORDS, StaleFindingError
from benchmarks.study.findings import Findings, find
from benchmarks.study.parts import BASELINE, DATA, METHODS, PARTS
from benchmarks.study.readme_notes import IN_README
from benchmarks.study.record import STUDENT, Record
from benchmarks.study.workplace import CONFIGURATION
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.evaluation.statistics import Interval, mean_and_error
from nnunet_kd.evaluation.summary import mean_with_error
from nnunet_kd.evaluation.table import Table
from nnunet_kd.storage.writing import replacing, write_whole
from nnunet_kd.study.report import Report, report_in_markdown
from nnunet_kd.study.runs import TEACHER

BENCHMARKS = Path(__file__).parents[1]
README = BENCHMARKS.parent / "README.md"
README_MARKS = "<!-- written by python -m benchmarks.study -->\n", "<!-- end of the generated section -->\n"
ABOUT_OVERVIEW = (
    "Means over the seeds, ± the standard error over the cases. Intervals (95 %) are over cases and, if there are "
    "several, seeds. With two or three seeds the bootstrap makes them too narrow: they contain the true value less "
    "than 95 % of the time. All rows of a data set share one teacher and one fold, so the intervals do not cover "
    "another teacher or split. A share below -100 % means a gap too small for the share to say much; the sections "
    "below give differences in points. 'Averaged' means the moving average of the weights (EMA, 0.99). KD has no "
    "distillation loss: it is the pruned teacher, trained with averaged weights."
)
ABOUT_COSTS = (
    "for a student of this width, whatever its training. Teacher and student were measured several times in turn; the "
    "table gives medians. Peak memory is that of the process, including libraries"
)
LIMITS = -8, 10  # ends of the picture's axis, in points


def overview(records: Mapping[str, Record]) -> str:
    """Tabulate, per method and part, the mean Dice with its standard error and the gap closed with its interval."""
    parts = shown(records)
    rows = {method: [method] for method in (TEACHER, *METHODS)}
    for scores in parts.values():
        results = compare(scores, BASELINE, TEACHER)
        for method, row in rows.items():
            row.append(mean_with_error(scores.runs(method), "dice"))
            gap = results[method].gap if method in results and method != TEACHER else None
            row.append("" if gap is None else shown_gap(gap))
    header = [text for name in parts for text in (f"{name}: Dice (%)", "gap closed (%)")]
    return Table(["method", *header], list(rows.values())).markdown()


def shown_gap(gap: Interval) -> str:
    """Format a gap in per cent, or as ``"-"`` if there is none."""
    if math.isnan(gap.value):
        return "-"
    value, low, high = (round(100 * number) for number in (gap.value, gap.low, gap.high))
    return f"{value} [{low}, {high}]" if value >= -100 else "below -100"


def shown(records: Mapping[str, Record]) -> dict[str, Scores]:
    """Return the scores that the first table and the picture show, by the heading of the part."""
    parts = {}
    for record in records.values():
        if record.part.short and (scores := record.scores()) is not None:
            seeds = len(record.whole_seeds())
            parts[f"{record.part.short}, {seeds} seed{'s' if seeds > 1 else ''}"] = scores
    return parts


def report(record: Record) -> str:
    """Return the tables of the complete seeds in Markdown, as ``nnunet_kd compare`` writes them."""
    seeds, data = record.whole_seeds(), DATA[record.part.data]
    patients, cases = data.patients(record.teacher["cases"]), len(record.teacher["cases"])
    grouped = f", {patients} patients, whose {cases} cases count as independent" if patients < cases else ""
    measured = record.costs()
    costs = {} if measured is None else {TEACHER: measured[TEACHER], record.part.baseline: measured[STUDENT]}
    trained = data.cases - cases
    content = Report(
        title=record.part.title,
        facts={
            "Data": f"{data.folder}, {CONFIGURATION}, widths of the teacher divided by {record.part.reduction}",
            "Cases": f"validation cases of fold {record.part.fold}, which no student or teacher has seen{grouped}",
            "Teacher": "{} epochs of {num_iterations_per_epoch} iterations".format(
                record.teacher["epochs"], **data.teachers[record.part.fold]
            ),
            "Schedule": "{num_epochs} epochs of {num_iterations_per_epoch} iterations".format(**record.part.schedule)
            + f", each of 2 patches of {data.patch} voxels, {trained} cases, seed {', '.join(map(str, seeds))}",
            **(
                {"Precision": f"teacher in {record.part.precision}, for speed; its effect on accuracy was not measured"}
                if record.part.precision
                else {}
            ),
            **{row: record.part.description(row) for row in record.part.rows},
            "NSD": f"tolerance 1 mm{data.about_distances}",
            **({"Cost": ABOUT_COSTS} if costs else {}),
            "Versions": "; ".join(
                ", ".join(f"{name} {number}" for name, number in entry.items()) for entry in record.versions()
            ),
        },
        warnings=[],
        rows=record.all_rows(),
        baseline=record.part.baseline,
        teacher=TEACHER,
        costs=costs,
    )
    text = (
        report_in_markdown(content).partition("\n## Further metrics")[0].partition("\n")[2].replace("\n## ", "\n### ")
    )
    return text.strip()


def page(records: Mapping[str, Record], findings: Findings) -> str:
    """Return the page: tables and findings of every part of which at least one seed is complete."""
    sections = [
        "# A study on real volumes",
        "This page is written by `python -m benchmarks.study`, which trains with nnU-Net's own commands through "
        "`nnunet_kd compare`. Defaults are chosen in the part on tuning, on the cases and with the teacher of another "
        "fold. The metrics of every run and case are in [study/runs/](study/runs).",
    ]
    left = [f"{record.part.title} ({record.state()})" for record in records.values() if not record.is_finished()]
    sections += [f"Not finished yet: {'; '.join(left)}."] if left else []
    if shown(records):
        drawn = f"![Difference of every method to {BASELINE}](study.png)"
        summary = findings.above_table, overview(records), ABOUT_OVERVIEW, drawn, findings.below_table
        sections += [text for text in summary if text]
    for name, record in records.items():
        if record.whole_seeds():
            note = [findings.notes[name]] if name in findings.notes else []
            sections += [f"## {record.part.title}", *note, report(record)]
    return "\n\n".join(sections) + "\n"


def differences(records: Mapping[str, Record]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return what the picture shows: part -> method -> difference to the baseline and its interval (points)."""
    return {
        name: {
            method: tuple(round(100 * number, 2) for number in astuple(result.difference))
            for method, result in compare(scores, BASELINE, TEACHER).items()
        }
        for name, scores in shown(records).items()
    }


def picture(parts: Mapping[str, Mapping[str, tuple[float, float, float]]], target: Path) -> None:
    """Draw one panel per part and one line per method, and store the numbers as the file's description (JSON)."""
    from matplotlib.figure import Figure

    if not parts:
        target.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(2 + 2.6 * len(parts), 3.8))
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    order = [TEACHER, *(method for method in METHODS if method != BASELINE)][::-1]
    left, right = LIMITS
    for axes, (name, shown_here) in zip(panels, parts.items(), strict=True):
        for height, method in enumerate(order):
            value, low, high = shown_here[method]
            colour = "0.5" if method == TEACHER else "C0"
            if left < value < right:
                axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
                continue
            at, mark, beside, side = (left, "<", 8, "left") if value <= left else (right, ">", -8, "right")
            axes.plot(at, height, mark, color=colour, clip_on=False)
            place = {"xytext": (beside, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            axes.annotate(f"{value:+.1f}", (at, height), fontsize=8, **place)
        axes.set_xlim(left, right)
        axes.set_yticks(range(len(order)), order)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlabel(f"Dice minus {BASELINE} (points)")
        axes.set_title(name, fontsize=10)
        axes.grid(True, axis="x", alpha=0.3)
    figure.tight_layout()
    with replacing(target) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png", metadata={"Description": json.dumps(parts)})


def readme_section(records: Mapping[str, Record], findings: Findings) -> str:
    """Return the README's section: a table of five rows and a sentence, or nothing while there is nothing to show."""
    if not shown(records):
        return ""
    rows = {name: [label.format(losses=WORDS[len(LOSSES)])] for name, label in IN_README.items()}
    header = ["mean Dice (%)"]
    for record in records.values():
        if not record.part.short or (scores := record.scores()) is None:
            continue
        header.append(record.part.short)
        results = compare(scores, BASELINE, TEACHER)
        for name, row in rows.items():
            share = "" if name in (TEACHER, BASELINE) else f" ({shown_gap(results[name].gap).partition(' [')[0]} %)"
            row.append(f"{100 * mean_and_error(scores.runs(name))[0]:.1f}{share}")
    return f"{Table(header, list(rows.values())).markdown()}\n\n{findings.in_readme}".rstrip()


def with_section(readme: str, section: str) -> str:
    """Return the README with another section between the two marks.

    Raises:
        ValueError: If the marks are missing.
    """
    begin, end = README_MARKS
    if begin not in readme or end not in readme.partition(begin)[2]:
        raise ValueError(f"no section to replace between {begin.strip()} and {end.strip()}")
    before, _, rest = readme.partition(begin)
    return f"{before}{begin}\n{section}\n\n{end}{rest.partition(end)[2]}"


def write_page(folder: Path = BENCHMARKS, readme: Path = README) -> None:
    """Write ``study.md``, ``study.png``, the README's section and picture from the runs kept in ``study/runs``.

    Raises:
        StaleFindingError: If the kept runs do not show what a sentence says. Everything else is written first,
            without the paragraph that contains the sentence.
    """
    records = {name: Record(name, folder / "study" / "runs") for name in PARTS}
    findings = find(records)
    changed = with_section(readme.read_text(), readme_section(records, findings))
    write_whole(folder / "study.md", page(records, findings))
    picture(differences(records), folder / "study.png")
    if findings.picture:
        (readme.parent / "docs").mkdir(exist_ok=True)
        write_whole(readme.parent / "docs" / "picture.svg", findings.picture)
    write_whole(readme, changed)
    if findings.stale:
        raise StaleFindingError("; ".join(findings.stale))
