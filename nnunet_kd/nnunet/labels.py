"""Label values read from files: whole numbers, except for the rounding errors of files that store floats."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = 1e-3


def whole_labels(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round labels that are within 1e-3 of a whole number, and return all others unchanged."""
    if not np.issubdtype(labels.dtype, np.floating):
        return labels
    rounded = np.rint(labels)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return np.where(np.abs(labels - rounded) <= TOLERANCE, rounded, labels)


def label_text(value: Any) -> str:
    """Format a label value for messages: 1.0 as ``1``, and 0.95 as ``0.95``."""
    return str(int(value)) if float(value).is_integer() else str(value)
