"""Metrics of one segmented structure in one case.

Empty masks are scored as follows:

* If neither the reference nor the prediction contains the structure, every metric except specificity and accuracy is
  NaN and is left out of means. nnU-Net does the same with Dice.
* If only one of them contains it, Dice, IoU and NSD are 0, and HD95 is the length of the image's diagonal in mm, the
  largest possible distance. Metrics without a denominator (precision without a prediction, sensitivity and volume
  difference without a reference) are NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_kd.evaluation.confusion import Confusion, Mask

OVERLAP = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy", "volume_difference")
SURFACE = ("hd95", "nsd")
SINGLE = 1e-5  # relative tolerance for MONAI's distances, which rounding to single precision can increase
METRICS = ("dice", "hd95", "nsd", "iou", "precision", "sensitivity", "specificity", "accuracy", "volume_difference")

Distances = NDArray[np.float64]


def overlap_metrics(reference: Mask, prediction: Mask, valid: Mask | None = None) -> dict[str, float]:
    """Compute Dice, IoU, precision, sensitivity, specificity, accuracy and the relative volume difference.

    Args:
        reference: The mask of the structure in the reference.
        prediction: The mask of the structure in the prediction, on the same grid.
        valid: The mask of the voxels to evaluate; by default all voxels.

    Returns:
        The metrics by name, as fractions of 1. The volume difference is (prediction - reference) / reference.
    """
    return Confusion.of(reference, prediction, valid).metrics()


def surface_metrics(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float = 1.0, valid: Mask | None = None
) -> dict[str, float]:
    """Compute the 95th percentile of the Hausdorff distance in mm and the normalised surface Dice.

    The surface of a mask consists of its voxels that share a face with a voxel outside the mask or with the border of
    the image. MONAI computes the exact distances between voxel centres. HD95 is the larger one of the two directions'
    95th percentiles. NSD is the fraction of the voxels of both surfaces that lie within the tolerance of the other one.

    Args:
        reference: The mask of the structure in the reference.
        prediction: The mask of the structure in the prediction, on the same grid.
        spacing: The voxel size in mm, in the order of the axes.
        tolerance: The tolerance of the NSD in mm.
        valid: The mask of the voxels to evaluate; both masks are empty outside of it. By default all voxels.

    Returns:
        ``{"hd95": mm, "nsd": fraction of 1}``.
    """
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not has_reference and not has_prediction:
        return {"hd95": math.nan, "nsd": math.nan}
    if not has_reference or not has_prediction:
        diagonal = math.hypot(*(size * width for size, width in zip(reference.shape, spacing, strict=True)))
        return {"hd95": diagonal, "nsd": 0.0}
    there, back = surface_distances(reference, prediction, spacing)
    limit = tolerance * (1 + SINGLE)
    within = np.count_nonzero(there <= limit) + np.count_nonzero(back <= limit)
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "nsd": float(within / (there.size + back.size)),
    }


def surface_distances(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> tuple[Distances, Distances]:
    """Compute the distance of every surface voxel to the other surface, from the prediction and from the reference.

    Args:
        reference: The mask of the structure in the reference, which is not empty.
        prediction: The mask of the structure in the prediction, which is not empty.
        spacing: The voxel size, in the order of the axes, whose unit is that of the distances.
    """
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about an argument that it passes itself
        _, distances, _ = get_edge_surface_distance(
            torch.from_numpy(prediction), torch.from_numpy(reference), spacing=list(spacing), symmetric=True
        )
    there, back = (np.asarray(distance, dtype=np.float64) for distance in distances)
    return there, back
