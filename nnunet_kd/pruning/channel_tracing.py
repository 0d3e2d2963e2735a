"""Tracing the channels of a network from layer to layer.

Torch-Pruning's dependency graph (1.6.1) is similar, but it assumes that unknown operations work channel by channel,
does not see weights that two layers share, and loses an instance normalisation whose output is added to in place, as
in residual encoders. When channels are reordered, each of these changes the output without an error. Here, channels
that reach an unknown operation keep their order.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import activation, dropout, pooling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nnunet_kd.pruning.channel_graph import ChannelGraph, Layer

CHANNELWISE = (
    *(nn.Identity, nn.Upsample, activation.ReLU, activation.LeakyReLU, activation.ELU, activation.GELU),
    *(activation.SiLU, activation.Mish, activation.Sigmoid, activation.Tanh, dropout._DropoutNd),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
)
CHANNELWISE_FUNCTIONS = {*(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.leaky_relu, F.gelu, F.silu, F.interpolate)}
# A network marks its own function as working channel by channel with an attribute of this name, so that neither package
# has to import the other.
CHANNELWISE_MARK = "channelwise"
COMBINING_TWO = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
JOINING = {torch.cat, torch.concat}
ABOUT_SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim"}


def channel_graph(network: nn.Module) -> ChannelGraph:
    """Trace the channels of a network from layer to layer.

    The groups of the output and those that reach an unknown operation are not free. A network's own function is known
    if it is one node of the trace and marked as working on its first argument channel by channel::

        fx.wrap("attention")
        attention.channelwise = True

    Args:
        network: A segmentation network with one input ``(B, channels, *spatial)``.

    Raises:
        ValueError: If ``torch.fx`` cannot trace it.
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # forward methods can raise anything when given a proxy
        raise ValueError(f"{type(network).__name__} cannot be traced: {[*str(error).splitlines(), ''][0]}") from None
    follower = _Follower(traced)
    follower.run(None)
    return follower.found()


@dataclass(frozen=True)
class _Channels:
    """A stand-in for a tensor: the groups along its channel axis."""

    groups: tuple[int, ...]


class _Follower(fx.Interpreter):
    """Run a network on :class:`_Channels`; ``None`` stands for values that are not traced."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self._layers: dict[str, Layer] = {}
        self._sizes: list[int] = []
        self._same: list[int] = []  # group -> a group it was merged into, or itself
        self._held: set[int] = set()
        self._read_alone: list[Any] = []  # parameters that are read outside their layer

    def found(self) -> ChannelGraph:
        """Return the graph after the network has run."""
        self._hold_shared()
        layers = [
            Layer(layer.name, tuple(map(self._one, layer.reads)), tuple(map(self._one, layer.gives)))
            for layer in self._layers.values()
        ]
        groups = {group for layer in layers for group in (*layer.reads, *layer.gives)}
        free = groups - {self._one(group) for group in self._held}
        return ChannelGraph(layers, {group: self._sizes[group] for group in groups}, frozenset(free))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> None:
        """Leave the channels of the images untraced."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> None:
        """Record a parameter that is read outside its layer."""
        self._read_alone.append(self.fetch_attr(target))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """Trace channels through a layer."""
        module = self.fetch_attr(target)
        if len(args) != 1 or kwargs or not {name for name, _ in module.named_parameters()} <= {"weight", "bias"}:
            return self._hold(args, kwargs)  # other parameters: the weight is computed from them
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
        """Trace channels through a function."""
        if args and (target in CHANNELWISE_FUNCTIONS or getattr(target, CHANNELWISE_MARK, False)):
            if any(isinstance(other, _Channels) for other in (*args[1:], *kwargs.values())):
                return self._hold(args, kwargs)
            return args[0]  # type: ignore[no-any-return]
        if target is getattr and args[1] in ABOUT_SHAPES:
            return None
        if target in JOINING and args:
            parts, axis = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if axis == 1 and all(isinstance(part, _Channels) for part in parts):
                return _Channels(tuple(group for part in parts for group in part.groups))
        if target in COMBINING_TWO and len(args) == 2 and not kwargs:
            tensors = [entry for entry in args if not isinstance(entry, int | float)]
            if all(isinstance(tensor, _Channels) for tensor in tensors):
                self._merge(tensors[0].groups, tensors[-1].groups)
                return tensors[0]  # type: ignore[no-any-return]
        return self._hold(args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """Hold the channels of a tensor whose method is called, unless the method only returns its shape."""
        return None if target in ABOUT_SHAPES else self._hold(args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> _Channels | None:
        """Hold the channels of the logits."""
        return self._hold(args, kwargs)

    def _layer(self, name: str, reads: tuple[int, ...], gives: tuple[int, ...]) -> tuple[int, ...]:
        """Record a run of a layer, which can be a repeated one, and return the groups of its output."""
        layer = self._layers.setdefault(name, Layer(name, reads, gives))
        self._merge(layer.reads, reads)
        self._merge(layer.gives, gives)
        return layer.gives

    def _hold_shared(self) -> None:
        """Hold the groups of layers whose weights are also read elsewhere."""
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
        """Merge groups, so that their channels share one order."""
        if [self._sizes[group] for group in some] != [self._sizes[group] for group in others]:
            self._held.update(some, others)
            return
        for one, other in zip(some, others, strict=True):
            self._same[self._one(other)] = self._one(one)

    def _hold(self, *arguments: Any) -> _Channels | None:
        """Mark the channels of all arguments as not free, and return the stand-in for an untraced result."""
        fx.node.map_aggregate(arguments, self._hold_one)
        return None

    def _hold_one(self, argument: Any) -> None:
        if isinstance(argument, _Channels):
            self._held.update(argument.groups)


def _is_depthwise(layer: _ConvNd) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels
