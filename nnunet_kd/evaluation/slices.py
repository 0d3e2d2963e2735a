"""Scores of single slices of volumes, as papers about 2-D networks report them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.statistics import Values, mean_and_error
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
    scores = Scores(rows)
    lines = []
    for method in scores.methods:
        for structure in scores.structures:
            line = [method, structure]
            labelled = np.isfinite(scores.runs(method, "sensitivity", structure))
            for chosen in (np.isfinite(scores.runs(method, "dice", structure)), labelled):
                line.append(f"{chosen.sum(1).mean():g}")
                line += [_mean(np.where(chosen, scores.runs(method, one, structure), np.nan)) for one in _METRICS]
            lines.append(line)
    header = [f"{which}: {column}" for which in ("any", "labelled") for column in ("slices", *_METRICS.values())]
    return Table(["method", "structure", *header], lines)


def _mean(values: Values) -> str:
    mean, _ = mean_and_error(values)
    return f"{100 * mean:.2f}" if np.isfinite(mean) else "-"
