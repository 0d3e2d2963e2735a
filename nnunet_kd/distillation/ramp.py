"""The ramp of a loss weight over the epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ramp:
    """Cosine ramp from 0 to 1, as in DCD's published configuration.

    0 until epoch ``start``, then ``(1 - cos(pi * p)) / 2`` with ``p = (epoch - start) / length`` clipped to 1.

    Attributes:
        start: The epoch at which the ramp begins.
        length: The number of epochs that the ramp takes.
    """

    start: float
    length: float

    def __call__(self, epoch: int) -> float:
        """Return the factor of the weight in ``epoch``, counted from 0."""
        if epoch < self.start:
            return 0.0
        progress = min((epoch - self.start) / self.length, 1.0) if self.length else 1.0
        return 0.5 * (1 - math.cos(math.pi * progress))


def read_ramp(value: Any, num_epochs: int) -> Ramp | None:
    """Read a ramp ``[start, length]``: integers are epochs, floats are fractions of the training.

    At 1000 epochs ``[150, 800]`` and ``[0.15, 0.8]`` are the same ramp. ``None`` means no ramp.

    Raises:
        ValueError: If the value is anything else, or if the ramp begins after the end of the training.
    """
    if value is None:
        return None
    numbers = isinstance(value, list | tuple) and len(value) == 2
    if not numbers or any(isinstance(part, bool) or not isinstance(part, int | float) for part in value):
        raise ValueError(f"ramp must be null or [start, length], got {value!r}")
    start, length = value
    fractions = isinstance(start, float) or isinstance(length, float)
    if not (start >= 0 and length >= 0) or (fractions and max(start, length) > 1):
        raise ValueError(
            f"ramp is [start, length] in epochs (whole numbers) or as fractions of the training (0.0 to 1.0), "
            f"got {value!r}"
        )
    ramp = Ramp(start * num_epochs, length * num_epochs) if fractions else Ramp(start, length)
    if ramp(num_epochs - 1) == 0:
        raise ValueError(
            f"ramp {list(value)} leaves the weight at 0 for all {num_epochs} epochs: nothing would be distilled"
        )
    return ramp
