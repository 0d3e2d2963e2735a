"""The confusion of one structure: how many voxels are rightly or wrongly found, missed, or left out."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """The 2 x 2 confusion matrix of a structure in one case, or in several cases pooled.

    Confusions can be added: the metrics of a sum are those of all its voxels together.

    Attributes:
        true_positives: The number of voxels of the structure in both reference and prediction.
        false_positives: The number of voxels of the structure in the prediction only.
        false_negatives: The number of voxels of the structure in the reference only.
        true_negatives: The number of voxels without the structure in both.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    @classmethod
    def of(cls, reference: Mask, prediction: Mask, valid: Mask | None = None) -> Confusion:
        """Count the voxels of a case.

        Args:
            reference: The mask of the structure in the reference.
            prediction: The mask of the structure in the prediction, on the same grid.
            valid: The mask of the voxels to evaluate; by default all voxels.
        """
        if valid is not None:
            reference, prediction = reference[valid], prediction[valid]
        both = int(np.count_nonzero(reference & prediction))
        spurious, missed = int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both
        return cls(both, spurious, missed, reference.size - both - spurious - missed)

    def __add__(self, other: Confusion) -> Confusion:
        """Return the confusion of the voxels of both."""
        return Confusion(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @property
    def voxels(self) -> int:
        """The number of voxels that are counted."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives

    @property
    def in_reference(self) -> bool:
        """Whether the reference contains the structure."""
        return self.true_positives + self.false_negatives > 0

    @property
    def in_prediction(self) -> bool:
        """Whether the prediction contains the structure."""
        return self.true_positives + self.false_positives > 0

    def metrics(self) -> dict[str, float]:
        """Return Dice, IoU, precision, sensitivity, specificity, accuracy and the relative volume difference.

        They are fractions of 1, and NaN without a denominator. The volume difference is
        (prediction - reference) / reference.
        """
        both, spurious, missed, neither = astuple(self)
        found, real = both + spurious, both + missed
        return {
            "dice": _ratio(2 * both, found + real),
            "iou": _ratio(both, both + spurious + missed),
            "precision": _ratio(both, found),
            "sensitivity": _ratio(both, real),
            "specificity": _ratio(neither, neither + spurious),
            "accuracy": _ratio(both + neither, self.voxels),
            "volume_difference": _ratio(found - real, real),
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
