"""Tables of the scores in the layout of the papers, with the cautions and notes that a reader needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.pooled import CASES_NOTE, POOLED_NOTE, case_table, pooled_table
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.evaluation.slices import SLICES_NOTE, slice_table
from nnunet_kd.evaluation.statistics import (
    Interval,
    Values,
    class_mean_and_error,
    least_wilcoxon,
    mean_and_error,
    paired_tests,
)
from nnunet_kd.evaluation.table import Table
from nnunet_kd.evaluation.text import in_markdown
from nnunet_kd.evaluation.transunet import NOTE as TRANSUNET_NOTE

OTHER_METRICS = tuple(metric for metric in METRICS if metric not in ("dice", "hd95", "nsd"))
MEANS = (
    "{cases} cases; mean ± standard error over cases. 'Mean over cases' first averages the structures of each case, so "
    "that all cases have the same weight; 'mean over classes' first averages the cases of each structure, so that all "
    "structures have the same weight. They differ if a structure has no value in some cases: one that reference and "
    "prediction lack has none and does not count; where only one of them lacks it, Dice and NSD are 0 and HD95 is the "
    "image's diagonal. Of several seeds, the mean of their means."
)
TESTS = (
    "Mean Dice over cases, as above, and its difference to that of {baseline}. Intervals: bootstrap over {drawn}. "
    "t-test and Wilcoxon's signed rank test are two-sided and paired: over the cases in which both have a "
    "value{of_a_case}. Holm corrects Wilcoxon's for the number of methods. The tests compare these trained networks: "
    "they do not say what another training of the same method would give."
)
GAP = (
    " Gap closed: (method - {baseline}) / (teacher - {baseline}), where the interval of the teacher's difference is "
    "above 0; otherwise there is no gap to speak of."
)
FEW = " Of {cases} cases Wilcoxon's test cannot give a p below {least}."
TOO_FEW = (
    "Too few cases for a test: of {cases}, Wilcoxon's cannot give a p below {least}{holm}, however large a difference "
    "is. Intervals of so few cases are too narrow, too."
)
NOT_FOUND = "{method} finds next to nothing of {structures} (mean Dice below {percent:g} %)"
WEAK_BASELINE = (
    ": its training has failed or was too short, and a difference to it{gap} says little of the methods that are "
    "compared with it"
)
SEEDS = (
    "Mean Dice (%) of each seed, their standard deviation, and the mean of their differences to {baseline} with a "
    "t-test that is paired over the seeds: it asks whether other trainings would differ too, and of few seeds finds "
    "only large and steady differences. It is not corrected for the number of methods: of many that change nothing, "
    "some have a small p. The other tables are of the mean over seeds."
)

NOTHING = 0.01  # the mean Dice below which a structure counts as not found
LEVEL = 0.05  # the level of significance
SHOWN_P = 1e-4  # smaller p-values are shown as "< 0.0001"

LABELS = {
    "dice": "Dice (%)",
    "hd95": "HD95 (mm)",
    "nsd": "NSD (%)",
    "iou": "IoU (%)",
    "precision": "precision (%)",
    "sensitivity": "sensitivity (%)",
    "specificity": "specificity (%)",
    "accuracy": "accuracy (%)",
    "volume_difference": "volume difference (%)",
}


def cautions(scores: Scores, baseline: str, teacher: str | None = None) -> list[str]:
    """Return the cautions that a reader must know before the tables, one sentence each.

    Whether a method finds a structure is judged only in the cases whose reference contains it.
    """
    said = []
    for method in (baseline, *(method for method in scores.methods if method != baseline)):
        lost = [structure for structure in scores.structures if _found(scores, method, structure) < NOTHING]
        if not lost:
            continue
        text = NOT_FOUND.format(method=method, structures=", ".join(lost), percent=100 * NOTHING)
        if method == baseline and len(scores.methods) > 1:
            text += WEAK_BASELINE.format(gap="" if teacher is None else ", or a share of the gap,")
        said.append(f"{text}.")
    tested = _tested(scores, baseline, teacher)
    if tested:
        cases = max(tested.values())
        least = least_wilcoxon(cases)
        corrected = min(1.0, len(tested) * least)
        if corrected > LEVEL:
            holm = f", nor Holm's correction for {len(tested)} methods one below {corrected:.4f}"
            holm = holm if len(tested) > 1 else ""
            said.append(TOO_FEW.format(cases=cases, least=f"{least:.4f}", holm=holm))
    return said


def _found(scores: Scores, method: str, structure: str) -> float:
    """Return the mean Dice over the cases whose reference contains the structure, or NaN if there are none."""
    there = np.isfinite(scores.runs(method, "sensitivity", structure))
    return mean_and_error(np.where(there, scores.runs(method, "dice", structure), math.nan))[0]


def _tested(scores: Scores, baseline: str, teacher: str | None) -> dict[str, int]:
    """Return, for every method tested against the baseline, the number of cases in which both have a value."""
    there = np.isfinite(scores.of(baseline))
    methods = [method for method in scores.methods if method not in (baseline, teacher)]
    return {method: int((there & np.isfinite(scores.of(method))).sum()) for method in methods}


def metric_table(
    scores: Scores, metrics: Sequence[str] = ("dice", "hd95", "nsd"), labels: Mapping[str, str] = LABELS
) -> Table:
    """Return a table of means and standard errors over cases, by method, structure and metric.

    The means of all structures come first: that over cases and, with several structures, that over classes.

    Args:
        scores: The scores.
        metrics: The metrics to show.
        labels: The heading of each metric, with its unit.
    """
    header, rows = ["method"], [[method] for method in scores.methods]
    for metric in metrics:
        header.append(f"mean over cases, {labels[metric]}")
        for row in rows:
            row.append(mean_with_error(scores.runs(row[0], metric), metric))
        if len(scores.structures) > 1:
            header.append(f"mean over classes, {labels[metric]}")
            for row in rows:
                row.append(_with_error(class_mean_and_error(scores.classes(row[0], metric)), metric))
        for structure in scores.structures:
            header.append(f"{structure} {labels[metric]}")
            for row in rows:
                row.append(mean_with_error(scores.runs(row[0], metric, structure), metric))
    return Table(header, rows)


def comparison_table(scores: Scores, baseline: str, teacher: str | None = None) -> Table:
    """Return a table of the differences from the baseline, their tests and the gap closed."""
    header = ["method", "mean Dice (%) [95 %]", f"minus {baseline} [95 %]", "cases", "t-test p", "Wilcoxon p", "Holm p"]
    rows = []
    for method, result in compare(scores, baseline, teacher).items():
        row = [method, _percent(result.dice), _percent(result.difference, sign="+"), str(result.tests.cases)]
        row += [_p_value(p) for p in (result.tests.t, result.tests.wilcoxon, result.tests.wilcoxon_holm)]
        rows.append([*row, _percent(result.gap, digits=0)] if result.gap is not None else row)
    return Table(header if teacher is None else [*header, "gap closed (%) [95 %]"], rows)


def seed_table(scores: Scores, baseline: str) -> Table | None:
    """Return a table of the mean Dice of every seed, or ``None`` if no method has several seeds.

    The table also contains the standard deviation over the seeds and, for methods with the same seeds as the baseline,
    the difference from the baseline with a paired t-test.
    """
    several = {method: seeds for method, seeds in scores.seeds.items() if len(seeds) > 1}
    if not several:
        return None
    means = {method: np.array([mean_and_error(run)[0] for run in scores.runs(method)]) for method in several}
    paired = [method for method in several if method != baseline and several[method] == several.get(baseline)]
    tests = paired_tests({method: means[method] for method in paired}, means[baseline]) if paired else {}
    columns = sorted({seed for seeds in several.values() for seed in seeds if seed is not None})
    rows: list[list[str]] = []
    for method, seeds in several.items():
        by_seed = dict(zip(seeds, (f"{100 * mean:.2f}" for mean in means[method]), strict=True))
        row = [method, *(by_seed.get(seed, "") for seed in columns), f"{100 * np.std(means[method], ddof=1):.2f}"]
        if method in tests:
            difference = float(np.mean(means[method] - means[baseline]))
            row += [f"{100 * difference:+.2f}", _p_value(tests[method].t)]
        rows.append([*row, *[""] * (len(columns) + 4 - len(row))])
    headings = [f"seed {seed}" for seed in columns]
    return Table(["method", *headings, "standard deviation", f"minus {baseline}", "t-test p over seeds"], rows)


def tests_note(scores: Scores, baseline: str, teacher: str | None) -> str:
    """Return a note that explains the columns of :func:`comparison_table`."""
    several = any(len(seeds) > 1 for seeds in scores.seeds.values())
    drawn = "cases, and over the seeds of every method, of few of which they are too narrow" if several else "cases"
    of_a_case = ", the mean of the seeds that have one" if several else ""
    text = TESTS if teacher is None else TESTS + GAP
    cases = max(_tested(scores, baseline, teacher).values(), default=0)
    few = FEW.format(cases=cases, least=_p_value(least_wilcoxon(cases))) if least_wilcoxon(cases) >= SHOWN_P else ""
    return text.format(baseline=baseline, drawn=drawn, of_a_case=of_a_case) + (few if cases else "")


def summary_table(
    rows: Sequence[Row],
    baseline: str,
    teacher: str | None = None,
    scoring: str = "mm",
    slices: Sequence[Row] = (),
) -> str:
    """Return all tables with their explanations, in Markdown.

    Args:
        rows: The rows of all cases.
        baseline: The method that the others are compared with.
        teacher: The teacher's name among the methods, or ``None`` without a teacher.
        scoring: The scoring of the evaluation; see :class:`~nnunet_kd.evaluation.protocol.Evaluation`.
        slices: The rows of all slices, or none.
    """
    scores = Scores(rows)
    of_transunet = scoring == "transunet"
    labels = {**LABELS, "hd95": "HD95 (voxels)"} if of_transunet else LABELS
    parts = [f"**{in_markdown(caution)}**" for caution in cautions(scores, baseline, teacher)]
    parts += [MEANS.format(cases=len(scores.cases)), *([TRANSUNET_NOTE] if of_transunet else [])]
    parts += [metric_table(scores, labels=labels).markdown(), metric_table(scores, OTHER_METRICS).markdown()]
    if len(scores.methods) > 1:
        parts += [
            in_markdown(tests_note(scores, baseline, teacher)),
            comparison_table(scores, baseline, teacher).markdown(),
        ]
    for note, pooled in ((POOLED_NOTE, pooled_table(rows)), (CASES_NOTE, case_table(rows))):
        parts += [] if pooled is None else [note, pooled.markdown()]
    parts += [SLICES_NOTE, slice_table(slices).markdown()] if slices else []
    return "\n\n".join(parts)


def mean_with_error(values: Values, metric: str) -> str:
    """Format a mean and its standard error, as in ``83.26 ± 0.41``, in per cent or, for HD95, in mm."""
    return _with_error(mean_and_error(values), metric)


def _with_error(mean_and_error: tuple[float, float], metric: str) -> str:
    mean, error = mean_and_error
    scale = 1 if metric == "hd95" else 100
    if math.isnan(mean):
        return "-"
    return f"{scale * mean:.2f}" + ("" if math.isnan(error) else f" ± {scale * error:.2f}")


def _percent(interval: Interval, sign: str = "", digits: int = 2) -> str:
    if math.isnan(interval.value):
        return "-"
    # Rounding comes first, and adding 0.0 removes the sign of a zero.
    value, low, high = (round(100 * number, digits) + 0.0 for number in (interval.value, interval.low, interval.high))
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else ("< 0.0001" if p < SHOWN_P else f"{p:.4f}")
