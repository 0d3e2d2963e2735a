"""Metrics of all voxels of all cases together, of all labels together, and of whole cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.statistics import mean_and_error
from nnunet_kd.evaluation.table import Table

POOLED_NOTE = (
    "One confusion matrix over all voxels of all cases, as VM-UNet's line of papers computes it: large structures and "
    "large cases weigh more than above. Every structure is compared with the rest of the image, and mIoU and the other "
    "means are over the structures, without the background."
)
CASES_NOTE = (
    "Overall accuracy is the share of voxels with the right label, all labels and the background together. A case is "
    "positive if it contains any structure, and rightly told if reference and prediction are both positive or both "
    'negative ("diagnostic accuracy").'
)

_POOLED = {
    "iou": "IoU (%)",
    "dice": "Dice (%)",
    "accuracy": "accuracy (%)",
    "specificity": "specificity (%)",
    "sensitivity": "sensitivity (%)",
}
MEAN = "mean"

Runs = dict[str, list[list[Row]]]  # method -> the rows of each of its runs


def pooled_metrics(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Pool the voxels of all cases of one run.

    Args:
        rows: The rows of one method and seed, with their confusions.

    Returns:
        Structure -> metric -> fraction of 1. The metrics of VM-UNet's tables are IoU (there "mIoU"), Dice ("DSC"),
        accuracy, specificity and sensitivity.
    """
    pooled: dict[str, Confusion] = {}
    for row in rows:
        pooled[row.structure] = pooled.get(row.structure, Confusion()) + _confusion(row)
    return {structure: confusion.metrics() for structure, confusion in pooled.items()}


def told_cases(rows: Iterable[Row]) -> Confusion:
    """Count the cases of one run that are rightly or wrongly positive or negative.

    Args:
        rows: The rows of one method and seed, with their confusions. A case is positive if any of its rows is.
    """
    real: dict[str, bool] = {}
    found: dict[str, bool] = {}
    for row in rows:
        confusion = _confusion(row)
        real[row.case] = real.get(row.case, False) or confusion.in_reference
        found[row.case] = found.get(row.case, False) or confusion.in_prediction
    return Confusion.of(np.array([*real.values()], bool), np.array([*found.values()], bool))


def pooled_overall_accuracy(rows: Iterable[Row]) -> float:
    """Return the share of all voxels of all cases of one run whose label is right."""
    cases = {row.case: row for row in rows}.values()
    voxels = sum(_confusion(row).voxels for row in cases)
    return sum(row.right or 0 for row in cases) / voxels if voxels else math.nan


def pooled_table(rows: Sequence[Row]) -> Table | None:
    """Return a table of pooled metrics by method and structure, or ``None`` if a row has no confusion.

    Several seeds are averaged.
    """
    if any(row.confusion is None for row in rows):
        return None
    lines = []
    for method, runs in _runs(rows).items():
        pooled = [pooled_metrics(run) for run in runs]
        structures = {structure: _mean([run[structure] for run in pooled]) for structure in pooled[0]}
        if len(structures) > 1:
            structures = {_mean_name(structures): _mean([*structures.values()]), **structures}
        for structure, metrics in structures.items():
            lines.append([method, structure, *(_percent(metrics[metric]) for metric in _POOLED)])
    return Table(["method", "structure", *_POOLED.values()], lines)


def case_table(rows: Sequence[Row]) -> Table | None:
    """Return a table of the overall accuracy and of the rightly told cases by method, or ``None`` without confusions.

    Several seeds are averaged.
    """
    if any(row.confusion is None or row.right is None for row in rows):
        return None
    structures = list(dict.fromkeys(row.structure for row in rows))
    header = [
        "method",
        "overall accuracy, mean over cases (%)",
        "overall accuracy, pooled (%)",
        "cases rightly told (%)",
    ]
    header += ["positive cases rightly told (%)", "negative cases rightly told (%)"]
    header += [f"{structure}: cases rightly told (%)" for structure in structures] if len(structures) > 1 else []
    lines = []
    for method, runs in _runs(rows).items():
        accuracies = [list({row.case: row.overall_accuracy for row in run}.values()) for run in runs]
        mean, error = mean_and_error(np.array(accuracies))
        told = _mean([told_cases(run).metrics() for run in runs])
        line = [method, _percent(mean) + ("" if math.isnan(error) else f" ± {100 * error:.2f}")]
        line.append(_percent(float(np.mean([pooled_overall_accuracy(run) for run in runs]))))
        line += [_percent(told[metric]) for metric in ("accuracy", "sensitivity", "specificity")]
        for structure in structures if len(structures) > 1 else ():
            own = [told_cases(row for row in run if row.structure == structure).metrics() for run in runs]
            line.append(_percent(_mean(own)["accuracy"]))
        lines.append(line)
    return Table(header, lines)


def _runs(rows: Iterable[Row]) -> Runs:
    runs: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.method, row.seed), []).append(row)
    by_method: Runs = {}
    for (method, _), own in runs.items():
        by_method.setdefault(method, []).append(own)
    return by_method


def _confusion(row: Row) -> Confusion:
    if row.confusion is None:
        raise ValueError(f"case {row.case}: {row.method} has no confusion matrix of {row.structure}")
    return row.confusion


def _mean(all_metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of the values that are defined, by metric."""
    return {metric: mean_and_error([one[metric] for one in all_metrics])[0] for metric in all_metrics[0]}


def _mean_name(structures: Mapping[str, object]) -> str:
    return MEAN if MEAN not in structures else "mean of all"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
