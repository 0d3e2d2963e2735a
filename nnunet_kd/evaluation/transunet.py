"""The scoring of Synapse's published tables, as TransUNet introduced it and VM-UNet's line of papers repeats it.

Dice and HD95 differ from ours in these points:

* Distances are in voxels, whatever the spacing.
* HD95 is the 95th percentile of the distances in both directions together, instead of the larger one of the two
  directions' percentiles.
* A structure that the reference contains and the prediction misses scores Dice 0, but also HD95 0, the best value.
* A structure that the reference lacks scores Dice 1 if the prediction contains it, and Dice 0 if it does not, both with
  HD95 0. These two are as published, although they seem to be confused.

Every structure has a value in every case, so that the means over cases and over classes are the same.
"""

from __future__ import annotations

import numpy as np

from nnunet_kd.evaluation.confusion import Mask
from nnunet_kd.evaluation.metrics import surface_distances, surface_metrics

NOTE = (
    "Here, Dice and HD95 are scored otherwise, as by TransUNet: distances in voxels; a missed structure has HD95 0; a "
    "structure that the reference lacks has HD95 0, and Dice 1 if it is predicted, 0 if not. Compare such figures with "
    "published ones of the same scoring only."
)


def transunet_metrics(
    reference: Mask, prediction: Mask, tolerance: float = 1.0, valid: Mask | None = None
) -> dict[str, float]:
    """Compute Dice and HD95 (voxels) of one structure in one case as TransUNet does, and the NSD in voxels.

    Args:
        reference: The mask of the structure in the reference.
        prediction: The mask of the structure in the prediction, on the same grid.
        tolerance: The tolerance of the NSD in voxels. TransUNet has no NSD: it is ours.
        valid: The mask of the voxels to evaluate; both masks are empty outside of it. By default all voxels.

    Returns:
        ``{"dice": fraction of 1, "hd95": voxels, "nsd": fraction of 1}``.
    """
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    voxels = [1.0] * reference.ndim
    nsd = surface_metrics(reference, prediction, voxels, tolerance)["nsd"]
    real, found = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    if not real or not found:
        return {"dice": 1.0 if found else 0.0, "hd95": 0.0, "nsd": nsd}
    dice = 2 * int(np.count_nonzero(reference & prediction)) / (real + found)
    distances = np.concatenate(surface_distances(reference, prediction, voxels))
    return {"dice": dice, "hd95": float(np.percentile(distances, 95)), "nsd": nsd}
