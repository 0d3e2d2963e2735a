"""The error of a check that all later checks depend on."""

from __future__ import annotations


class StopError(ValueError):
    """A problem after which ``nnunet_kd doctor`` skips the remaining checks."""
