"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """A copy of a network that holds the exponential moving average of its parameters and running statistics.

    Args:
        network: The network that trains, which is not changed.
        decay: The decay of the average: after every step, ``average = decay * average + (1 - decay) * weights``.

    Attributes:
        network: The copy with the averaged weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = deepcopy(network).requires_grad_(False)
        self._averaged, self._weights = ([*averaged_tensors(one).values()] for one in (self.network, network))
        self._counters = [
            (mine, counter)
            for mine, counter in zip(self.network.buffers(), network.buffers(), strict=True)
            if not counter.is_floating_point()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights; integer buffers are copied."""
        torch._foreach_lerp_(self._averaged, self._weights, 1 - self.decay)
        self._copy_counters()

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average from the network's current weights."""
        torch._foreach_copy_(self._averaged, self._weights)
        self._copy_counters()

    def _copy_counters(self) -> None:
        for mine, counter in self._counters:
            mine.copy_(counter)


def averaged_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and running statistics of a network by name, each once."""
    statistics = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    return {**dict(network.named_parameters()), **statistics}


@torch.no_grad()
def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the network's tensors of the same names; all others are kept."""
    own = averaged_tensors(network)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
