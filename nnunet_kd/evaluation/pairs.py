"""Evaluate one segmentation against its reference: as a whole, or slice by slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_kd.evaluation.confusion import Confusion, Mask
from nnunet_kd.evaluation.metrics import METRICS, SURFACE, surface_metrics
from nnunet_kd.evaluation.protocol import Evaluation
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.transunet import transunet_metrics

Labels = np.ndarray[Any, Any]


def evaluate_pair(
    truth: Labels, labels: Labels, spacing: Sequence[float], evaluation: Evaluation, method: str, case: str
) -> list[Row]:
    """Return the rows of all structures of one segmentation, or of all structures of each of its slices.

    Slices without any structure in both have no rows, because they have no Dice and are the most. The others have no
    surface metrics, because distances to other slices are unknown to them: HD95 and NSD are NaN.

    Args:
        truth: The labels of the reference, ``(z, y, x)`` or ``(y, x)``.
        labels: The labels of the segmentation, of the same shape.
        spacing: The voxel size in mm, in the order of the axes.
        evaluation: The structures, their tolerances, the scoring, and the axis of the slices.
        method: The name of the method.
        case: The name of the case; that of a slice has its number, counted from 0 in the file.

    Raises:
        ValueError: If the slices of an image without slices are to be evaluated.
    """
    axis = evaluation.slice_axis
    if axis is None:
        return _rows(truth, labels, spacing, evaluation, method, case)
    if truth.ndim < 3:
        raise ValueError(f"case {case} is a single image, which has no slices: leave out --slices")
    rows = []
    for number, (one, other) in enumerate(zip(np.moveaxis(truth, axis, 0), np.moveaxis(labels, axis, 0), strict=True)):
        of_slice = _rows(one, other, None, evaluation, method, f"{case}, slice {number}")
        if any(not math.isnan(row.values["dice"]) for row in of_slice):
            rows += of_slice
    return rows


def _rows(
    truth: Labels, labels: Labels, spacing: Sequence[float] | None, evaluation: Evaluation, method: str, case: str
) -> list[Row]:
    valid = None if evaluation.ignore_label is None else truth != evaluation.ignore_label
    same = truth == labels
    right = int(np.count_nonzero(same if valid is None else same[valid]))
    rows = []
    for structure, values in evaluation.structures.items():
        real, found = np.isin(truth, values), np.isin(labels, values)
        confusion = Confusion.of(real, found, valid)
        surface = dict.fromkeys(SURFACE, math.nan)
        if spacing is not None:
            surface = _surface(real, found, spacing, evaluation, evaluation.tolerances[structure], valid)
        metrics = confusion.metrics() | surface
        ordered = {metric: metrics[metric] for metric in METRICS}
        rows.append(Row(method, case, structure, ordered, confusion=confusion, right=right))
    return rows


def _surface(
    real: Mask, found: Mask, spacing: Sequence[float], evaluation: Evaluation, tolerance: float, valid: Mask | None
) -> dict[str, float]:
    """Return the metrics that depend on the scoring."""
    if evaluation.scoring == "transunet":
        return transunet_metrics(real, found, tolerance, valid)
    return surface_metrics(real, found, spacing, tolerance, valid)
