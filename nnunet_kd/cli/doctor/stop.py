"""How a check says that what follows depends on it."""

from __future__ import annotations


class StopError(ValueError):
    """What follows cannot be checked."""
