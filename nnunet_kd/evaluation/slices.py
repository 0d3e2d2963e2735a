"""Scores of single slices of volumes, as papers about 2-D networks report them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.statistics import mean_and_error
from nnunet_kd.evaluation.table import Table

SLICES_NOTE = (
    "Every slice is an image of its own. 'Any' is the mean over all slices in which reference or prediction contains "
    "the structure, where a false alarm or a miss scores Dice 0; 'labelled' is the mean over the slices whose "
    "reference contains it, as in papers that use only those. There are no standard errors, because the slices of a "
    "patient are not independent."
)
_METRICS = {
    "dice": "Dice (%)",
    "iou": "IoU (%)",
    "precision": "precision (%)",
    "sensitivity": "sensitivity (%)",
}


def slice_table(rows: Sequence[Row]) -> Table:
    """Return a table of the mean scores of slices by method and structure; several seeds are averaged.

    Args:
        rows: The rows of an evaluation by slice.
    """
    runs: dict[tuple[str, str], dict[int | None, list[Row]]] = {}  # method and structure -> seed -> slices
    for row in rows:
        runs.setdefault((row.method, row.structure), {}).setdefault(row.seed, []).append(row)
    lines = []
    for (method, structure), by_seed in runs.items():
        line = [method, structure]
        for defined in ("dice", "sensitivity"):  # a slice that lacks the structure in the reference has no sensitivity
            chosen = [[one for one in run if math.isfinite(one.values[defined])] for run in by_seed.values()]
            line.append(f"{np.mean([len(run) for run in chosen]):g}")
            for metric in _METRICS:
                means = [mean_and_error([one.values[metric] for one in run])[0] for run in chosen]
                line.append(_percent(mean_and_error(means)[0]))
        lines.append(line)
    header = [f"{which}: {column}" for which in ("any", "labelled") for column in ("slices", *_METRICS.values())]
    return Table(["method", "structure", *header], lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"
