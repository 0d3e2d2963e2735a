"""Groups of channels that share their order throughout a network, and how to reorder them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Layer:
    """A layer with weights for each channel, and the groups of its channels.

    Attributes:
        name: The module's name in the network.
        reads: The groups along the axis that the layer sums over, in order. Empty for a layer that does not sum over
            channels, such as a normalisation or a depthwise convolution, or whose input could not be traced.
        gives: The groups along the axis of its output, in order.
    """

    name: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """Layers and groups of channels; the channels of a group have the same order in every layer.

    A convolution's output starts a group, and adding two outputs merges their groups.

    Attributes:
        layers: The layers in the order in which they run.
        sizes: Group -> the number of its channels.
        free: The groups whose channels can be reordered without changing the network's output.
    """

    layers: Sequence[Layer]
    sizes: Mapping[int, int]
    free: frozenset[int]

    @torch.no_grad()
    def reorder(self, network: nn.Module, orders: Mapping[int, Tensor]) -> None:
        """Reorder the channels of a network in place.

        Args:
            network: The network that the graph was made from.
            orders: Free group -> a permutation of its channels.
        """
        for layer in self.layers:
            module = network.get_submodule(layer.name)
            summed, given = axes(module)
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, tensor in own:
                groups = {given: layer.gives, summed: layer.reads} if name == "weight" else {0: layer.gives}
                for axis, along in groups.items():
                    if axis is not None and along and tensor.dim():  # a normalisation's batch counter has no axis
                        tensor.copy_(tensor.index_select(axis, self._along(along, orders).to(tensor.device)))

    def _along(self, groups: Iterable[int], orders: Mapping[int, Tensor]) -> Tensor:
        """Return the order of all channels along an axis with these groups."""
        return torch.cat(
            [orders.get(group, torch.arange(self.sizes[group])) + start for group, start in self.starts(groups)]
        )

    def starts(self, groups: Iterable[int]) -> list[tuple[int, int]]:
        """Pair each group along an axis with the index of its first channel."""
        found, start = [], 0
        for group in groups:
            found.append((group, start))
            start += self.sizes[group]
        return found


def axes(layer: nn.Module) -> tuple[int | None, int]:
    """Return the axis of a layer's weight that is summed over, or ``None``, and the axis of the output channels."""
    if not isinstance(layer, _ConvNd) or layer.groups > 1:
        return None, 0
    return (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
