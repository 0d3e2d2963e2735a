"""The ramp of a loss weight over the epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ramp:
    """Ramp from 0 to 1: a cosine, as in DCD's published configuration, or a line.

    0 until epoch ``start``, then ``(1 - cos(pi * p)) / 2`` or ``p``, where p is ``(epoch - start) / length`` clipped to
    1.

    Attributes:
        start: The epoch at which the ramp begins.
        length: The number of epochs that the ramp takes.
        shape: ``"cosine"`` or ``"linear"``.
    """

    start: float
    length: float
    shape: str = "cosine"

    def __call__(self, epoch: int) -> float:
        """Return the factor of the weight in ``epoch``, counted from 0."""
        if epoch < self.start:
            return 0.0
        progress = min((epoch - self.start) / self.length, 1.0) if self.length else 1.0
        return progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))


def read_ramp(value: Any, num_epochs: int, shape: str = "cosine") -> Ramp | None:
    """Read a ramp ``[start, length]``: integers are epochs, floats are fractions of the training.

    At 1000 epochs ``[150, 800]`` and ``[0.15, 0.8]`` are the same ramp. ``None`` means no ramp.

    Args:
        value: The ramp.
        num_epochs: The number of epochs of the training.
        shape: The ramp's shape.

    Raises:
        ValueError: If the value is anything else, or if the ramp begins after the end of the training.
    """
    if shape not in ("cosine", "linear"):
        raise ValueError(f"ramp_shape must be 'cosine' or 'linear', got {shape!r}")
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
    factor = num_epochs if fractions else 1
    ramp = Ramp(start * factor, length * factor, shape)
    if ramp(num_epochs - 1) == 0:
        raise ValueError(
            f"ramp {list(value)} leaves the weight at 0 for all {num_epochs} epochs: nothing would be distilled"
        )
    return ramp
