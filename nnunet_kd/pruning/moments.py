"""Means and covariances of features over positions drawn from feature maps, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

MANY = 2**20  # positions; if there are more, they are drawn with replacement


def draw(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Draw ``wanted`` integers below ``count``, or all of them if there are fewer.

    They are distinct unless ``count`` is above :data:`MANY`: a permutation of all voxels of a batch takes a second.
    """
    if count > MANY:
        return torch.randint(count, (wanted,), generator=generator)
    return torch.randperm(count, generator=generator)[:wanted]


def in_double(tensor: Tensor) -> Tensor:
    """Convert to float64, on the CPU where the tensor's device (Apple's GPUs) has no such type."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class Moments:
    """Weighted sums of features and of their pairwise products, accumulated batch by batch."""

    def __init__(self) -> None:
        self._products: Tensor | float = 0.0

    def add(self, features: Tensor, weights: Tensor | None = None) -> None:
        """Add the features at some positions.

        Args:
            features: The features, ``(positions, features)``.
            weights: The weight of each position, ``(positions,)``; ``None`` weighs all with 1.
        """
        rows = in_double(torch.cat((features, torch.ones_like(features[:, :1])), 1))
        weighted = rows if weights is None else rows * weights.to(rows)[:, None]
        self._products = self._products + rows.T @ weighted

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the features, ``(features,)``."""
        return self._added[:-1, -1] / self._added[-1, -1]

    @property
    def covariance(self) -> Tensor:
        """The weighted covariance of the features, ``(features, features)``."""
        return self._added[:-1, :-1] / self._added[-1, -1] - torch.outer(self.mean, self.mean)

    @property
    def scatter(self) -> Tensor:
        """The covariance times the sum of the weights, as a regression needs it."""
        return self._added[:-1, :-1] - torch.outer(self._added[:-1, -1], self.mean)

    @property
    def _added(self) -> Tensor:
        assert isinstance(self._products, Tensor), "no positions were added"
        return self._products
