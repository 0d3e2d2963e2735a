"""Groups of channels that have one order all over a network, and the change of that order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Layer:
    """A layer with weights per channel.

    Attributes:
        name: The module's name in the network.
        reads: Groups along the axis the layer sums over, in their order. Empty for a layer that sums over no channels,
            such as a normalisation or a depthwise convolution, or over channels that could not be followed.
        gives: Groups along the axis of its output, in their order.
    """

    name: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """Groups of channels; those of a group are numbered the same in every layer.

    A convolution's output starts a group; adding two outputs merges their two groups.

    Attributes:
        layers: The layers in the order in which they run.
        sizes: Group -> number of its channels.
        free: Groups whose channels can be reordered without a change of the network's output.
    """

    layers: Sequence[Layer]
    sizes: Mapping[int, int]
    free: frozenset[int]

    @torch.no_grad()
    def reorder(self, network: nn.Module, orders: Mapping[int, Tensor]) -> None:
        """Change the order of channels in place.

        Args:
            network: The network the graph was made of.
            orders: Free group -> a permutation of its channels.
        """
        for layer in self.layers:
            module = network.get_submodule(layer.name)
            summed, given = axes(module)
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, tensor in own:
                groups = {given: layer.gives, summed: layer.reads} if name == "weight" else {0: layer.gives}
                for axis, along in groups.items():
                    if axis is not None and along and tensor.dim():  # none: a normalisation's number of batches
                        tensor.copy_(tensor.index_select(axis, self._along(along, orders).to(tensor.device)))

    def _along(self, groups: Iterable[int], orders: Mapping[int, Tensor]) -> Tensor:
        """Return the order of all channels along an axis."""
        return torch.cat(
            [orders.get(group, torch.arange(self.sizes[group])) + start for group, start in self.starts(groups)]
        )

    def starts(self, groups: Iterable[int]) -> list[tuple[int, int]]:
        """Pair each of the groups along an axis with the number of its first channel there."""
        found, start = [], 0
        for group in groups:
            found.append((group, start))
            start += self.sizes[group]
        return found


def axes(layer: nn.Module) -> tuple[int | None, int]:
    """Return the axis of a layer's weight that it sums over, if there is one, and the axis of its output channels."""
    if not isinstance(layer, _ConvNd) or layer.groups > 1:
        return None, 0
    return (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
