"""Which channels of a network belong together, and the order they have in it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import activation, dropout, pooling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nnunet_kd.networks.dra_unet import simam

CHANNELWISE = (
    *(nn.Identity, nn.Upsample, activation.ReLU, activation.LeakyReLU, activation.ELU, activation.GELU),
    *(activation.SiLU, activation.Mish, activation.Sigmoid, activation.Tanh, dropout._DropoutNd),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
)
CHANNELWISE_FUNCTIONS = {
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.leaky_relu, F.gelu, F.silu, F.interpolate, simam)
}
OF_TWO = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
JOINING = {torch.cat, torch.concat}
ABOUT_SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim"}


@dataclass(frozen=True)
class Layer:
    """A layer with weights for channels.

    Attributes:
        name: Of the module.
        reads: Groups along the axis it sums over, in their order. Empty where it sums over none, as a normalisation or
            a depthwise convolution, or over channels that were not followed.
        gives: Groups along the axis of its output, in their order.
    """

    name: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """Groups of channels, each with one order all over the network.

    A convolution begins a group; a sum of two outputs makes one of their two.

    Attributes:
        layers: In the order in which they run.
        sizes: Group -> number of its channels.
        free: Groups with whose order the network's output does not change.
    """

    layers: Sequence[Layer]
    sizes: Mapping[int, int]
    free: frozenset[int]

    @torch.no_grad()
    def reorder(self, network: nn.Module, orders: Mapping[int, Tensor]) -> None:
        """Change the order of channels in place.

        Args:
            network: The one that was followed.
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
        """The order of all channels of an axis."""
        return torch.cat(
            [orders.get(group, torch.arange(self.sizes[group])) + start for group, start in self.starts(groups)]
        )

    def starts(self, groups: Iterable[int]) -> list[tuple[int, int]]:
        """Each of several groups along an axis with the number of its first channel there."""
        found, start = [], 0
        for group in groups:
            found.append((group, start))
            start += self.sizes[group]
        return found


def axes(layer: nn.Module) -> tuple[int | None, int]:
    """Of a layer's weight the axis of the channels it sums over, if any, and that of those it gives."""
    if not isinstance(layer, _ConvNd) or layer.groups > 1:
        return None, 0
    return (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)


def channel_graph(network: nn.Module) -> ChannelGraph:
    """Follow the channels of a network from layer to layer.

    Groups that meet an operation that is not known here, and those of the output, are not free.

    Args:
        network: A segmentation network with one input ``(B, channels, *spatial)``.

    Raises:
        ValueError: Where ``torch.fx`` cannot trace it.
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # whatever a forward method makes of a stand-in for a tensor
        raise ValueError(f"{type(network).__name__} cannot be traced: {[*str(error).splitlines(), ''][0]}") from None
    follower = _Follower(traced)
    follower.run(None)
    return follower.found()


@dataclass(frozen=True)
class _Channels:
    """What stands for a tensor: the groups along its channel axis."""

    groups: tuple[int, ...]


class _Follower(fx.Interpreter):
    """Runs a network on :class:`_Channels`; ``None`` stands for whatever is not followed."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self._layers: dict[str, Layer] = {}
        self._sizes: list[int] = []
        self._same: list[int] = []  # group -> one that it was found to be, or itself
        self._held: set[int] = set()
        self._read_alone: list[Any] = []  # parameters, without their layer

    def found(self) -> ChannelGraph:
        """What was found."""
        self._hold_shared()
        layers = [
            Layer(layer.name, tuple(map(self._one, layer.reads)), tuple(map(self._one, layer.gives)))
            for layer in self._layers.values()
        ]
        groups = {group for layer in layers for group in (*layer.reads, *layer.gives)}
        free = groups - {self._one(group) for group in self._held}
        return ChannelGraph(layers, {group: self._sizes[group] for group in groups}, frozenset(free))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> None:
        """The images."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> None:
        """A parameter, for another operation than its layer's."""
        self._read_alone.append(self.fetch_attr(target))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """A layer."""
        module = self.fetch_attr(target)
        if len(args) != 1 or kwargs or not {name for name, _ in module.named_parameters()} <= {"weight", "bias"}:
            return self._hold(args, kwargs)  # the latter: its weight is made of others
        read: _Channels | None = args[0]
        if isinstance(module, CHANNELWISE):
            return read
        if isinstance(module, _NormBase) or (isinstance(module, _ConvNd) and _is_depthwise(module)):
            return None if read is None else _Channels(self._layer(target, (), read.groups))
        if isinstance(module, _ConvNd) and module.groups == 1:
            gives = self._layers[target].gives if target in self._layers else self._new(module.out_channels)
            return _Channels(self._layer(target, () if read is None else read.groups, gives))
        return self._hold(args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """What is no layer."""
        if target in CHANNELWISE_FUNCTIONS and args:
            return args[0]  # type: ignore[no-any-return]
        if target is getattr and args[1] in ABOUT_SHAPES:
            return None
        if target in JOINING and args:
            parts, axis = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if axis == 1 and all(isinstance(part, _Channels) for part in parts):
                return _Channels(tuple(group for part in parts for group in part.groups))
        if target in OF_TWO and len(args) == 2 and not kwargs:
            tensors = [entry for entry in args if not isinstance(entry, int | float)]
            if all(isinstance(tensor, _Channels) for tensor in tensors):
                self._merge(tensors[0].groups, tensors[-1].groups)
                return tensors[0]  # type: ignore[no-any-return]
        return self._hold(args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """Of a tensor."""
        return None if target in ABOUT_SHAPES else self._hold(args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """Logits."""
        return self._hold(args, kwargs)

    def _layer(self, name: str, reads: tuple[int, ...], gives: tuple[int, ...]) -> tuple[int, ...]:
        """Note a layer, maybe once more.

        Returns:
            What it gives.
        """
        layer = self._layers.setdefault(name, Layer(name, reads, gives))
        self._merge(layer.reads, reads)
        self._merge(layer.gives, gives)
        return layer.gives

    def _hold_shared(self) -> None:
        """Layers some of whose weights are read elsewhere too."""
        owned = {name: [id(own) for own in self.fetch_attr(name).parameters(recurse=False)] for name in self._layers}
        times = Counter([id(read) for read in self._read_alone] + [one for own in owned.values() for one in own])
        for name, layer in self._layers.items():
            if any(times[one] > 1 for one in owned[name]):
                self._held.update(layer.reads, layer.gives)

    def _new(self, size: int) -> tuple[int]:
        self._sizes.append(size)
        self._same.append(len(self._same))
        return (len(self._same) - 1,)

    def _one(self, group: int) -> int:
        while self._same[group] != group:
            group = self._same[group]
        return group

    def _merge(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Their channels have one order."""
        if [self._sizes[group] for group in some] != [self._sizes[group] for group in others]:
            self._held.update(some, others)
            return
        for one, other in zip(some, others, strict=True):
            self._same[self._one(other)] = self._one(one)

    def _hold(self, *arguments: Any) -> _Channels | None:
        """Their channels keep the order they have.

        Returns:
            What stands for the result, whose channels are not known.
        """
        fx.node.map_aggregate(arguments, self._hold_one)
        return None

    def _hold_one(self, argument: Any) -> None:
        if isinstance(argument, _Channels):
            self._held.update(argument.groups)


def _is_depthwise(layer: _ConvNd) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels
