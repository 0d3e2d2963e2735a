"""The error of a check on which those after it depend."""

from __future__ import annotations


class StopError(ValueError):
    """The checks after this one are skipped."""
