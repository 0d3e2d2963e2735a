"""Metrics of one segmented structure in one case.

What an empty mask scores:

* neither reference nor prediction has the structure: nothing can be said; every metric but specificity and accuracy
  is not a number, and is left out of means. nnU-Net does the same with Dice.
* only one of them has it: Dice, IoU and NSD are 0, HD95 is the length of the image's diagonal in mm, the largest
  distance there can be; what has no denominator (precision without prediction, sensitivity and volume difference
  without reference) is not a number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OVERLAP = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy", "volume_difference")
SURFACE = ("hd95", "nsd")
SINGLE = 1e-5  # relative; MONAI gives distances in single precision, which may lie just above what they are
METRICS = ("dice", "hd95", "nsd", "iou", "precision", "sensitivity", "specificity", "accuracy", "volume_difference")

Mask = NDArray[np.bool_]


def overlap_metrics(reference: Mask, prediction: Mask, valid: Mask | None = None) -> dict[str, float]:
    """Dice, IoU, precision, sensitivity, specificity, accuracy and relative volume difference.

    Args:
        reference: Voxels of the structure.
        prediction: Those of the segmentation, on the same grid.
        valid: Voxels that count; all if left out.

    Returns:
        Metric -> value, fractions of 1. Volume difference is (prediction - reference) / reference.
    """
    if valid is not None:
        reference, prediction = reference[valid], prediction[valid]
    both = int(np.count_nonzero(reference & prediction))
    found, real, voxels = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference)), reference.size
    spurious, missed = found - both, real - both
    neither = voxels - both - spurious - missed
    return {
        "dice": _ratio(2 * both, found + real),
        "iou": _ratio(both, both + spurious + missed),
        "precision": _ratio(both, found),
        "sensitivity": _ratio(both, real),
        "specificity": _ratio(neither, neither + spurious),
        "accuracy": _ratio(both + neither, voxels),
        "volume_difference": _ratio(found - real, real),
    }


def surface_metrics(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float = 1.0, valid: Mask | None = None
) -> dict[str, float]:
    """95th percentile of the Hausdorff distance (mm) and normalised surface Dice.

    Surfaces are the voxels of a mask with a neighbour outside, across a face; beyond the border of the image is
    outside. Distances are between voxel centres (MONAI's, exact). HD95 is the larger of the two directions' 95th
    percentiles; NSD the share of both surfaces' voxels that lie within the tolerance of the other surface.

    Args:
        reference: Voxels of the structure.
        prediction: Those of the segmentation, on the same grid.
        spacing: Voxel size in mm, in the order of the axes.
        tolerance: Of the NSD, in mm.
        valid: Voxels that count: outside of them there is no structure.

    Returns:
        ``{"hd95": mm, "nsd": fraction of 1}``.
    """
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not has_reference and not has_prediction:
        return {"hd95": math.nan, "nsd": math.nan}
    if not has_reference or not has_prediction:
        diagonal = math.hypot(*(size * width for size, width in zip(reference.shape, spacing, strict=True)))
        return {"hd95": diagonal, "nsd": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of an argument it gives itself
        _, distances, _ = get_edge_surface_distance(
            torch.from_numpy(prediction), torch.from_numpy(reference), spacing=list(spacing), symmetric=True
        )
    there, back = (np.asarray(distance, dtype=np.float64) for distance in distances)
    limit = tolerance * (1 + SINGLE)
    within = np.count_nonzero(there <= limit) + np.count_nonzero(back <= limit)
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "nsd": float(within / (there.size + back.size)),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
