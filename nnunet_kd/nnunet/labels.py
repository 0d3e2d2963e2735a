"""Label values as files hold them: whole numbers, up to what storing them as floats has changed."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = 1e-3


def whole_labels(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels, rounded where they are within 1e-3 of a whole number; others stay as they are, to be refused."""
    if not np.issubdtype(labels.dtype, np.floating):
        return labels
    rounded = np.rint(labels)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return np.where(np.abs(labels - rounded) <= TOLERANCE, rounded, labels)


def label_text(value: Any) -> str:
    """A label value in full: 1, but 0.95 and 1.0023."""
    return str(int(value)) if float(value).is_integer() else str(value)
