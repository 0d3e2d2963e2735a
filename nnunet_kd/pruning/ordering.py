"""Which of its teacher's channels a student has: those from which the layers that read them lose least.

Luo et al., "ThiNet", ICCV 2017: the channels that stay are chosen greedily, by what the next layer gives; from the last
layer to the first, so that what a layer gives counts only where it stays itself. Here the channels that go are not
taken for zero but for what least squares make of those that stay, since
:func:`nnunet_kd.pruning.reconstruction.reconstruct` does so afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.pruning.channel_graph import ChannelGraph, Layer, axes, channel_graph
from nnunet_kd.pruning.selection import Progress, channels_taken, draw, in_double


@torch.no_grad()
def sort_channels(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Tensor],
    positions: int = 2048,
    *,
    progress: Progress = lambda work, _: work,
) -> int:
    r"""Reorder the teacher's channels in place, so that those a student takes are worth most.

    Of each group of channels that have one order (:func:`nnunet_kd.pruning.channel_graph.channel_graph`), channel j
    after channel j is taken that adds most to

    .. math:: \frac{1}{|O|} \sum_{o \in O} \sum_k
        \frac{w_{ok}^T (C - R) w_{ok}}{\sum_{k'} w_{ok'}^T C w_{ok'}},

    summed over the layers that read the group. C is the covariance of what a layer reads, over positions drawn from
    the images, R what is left of it after regression on the channels taken, in the numerator for the group's channels
    alone; O are the channels of the layer's output that the student has, w_ok its weights for them at voxel k of the
    kernel, whose voxels count as independent.

    Args:
        teacher: A network in evaluation mode. Its outputs stay, but for rounding.
        student: The same network but for its widths. Only these are read.
        batches: Images ``(B, channels, *spatial)``, on the teacher's device.
        positions: How many are drawn from an image for a layer, where it has so many.
        progress: Shows the work on the batches; takes an iterable and its length.

    Returns:
        How many groups were reordered.

    Raises:
        ValueError: For a teacher whose channels cannot be followed.
    """
    graph = channel_graph(teacher)
    wanted = _widths(graph, student)
    readers = _readers(graph, teacher, progress(batches, len(batches)), positions)
    taken: dict[int, Tensor] = {}
    for group in sorted(wanted, key=lambda group: _first(graph, group), reverse=True):
        losses = [reader.loss(group, graph, taken) for reader in readers if group in reader.layer.reads]
        if losses:
            taken[group] = _best(losses, wanted[group])
    graph.reorder(teacher, {group: _order(chosen, graph.sizes[group]) for group, chosen in taken.items()})
    return len(taken)


def _widths(graph: ChannelGraph, student: nn.Module) -> dict[int, int]:
    """Free group -> how many of its channels the student has, where these are fewer."""
    widths: dict[int, set[int]] = {}
    for layer in graph.layers:
        given: Any = getattr(student.get_submodule(layer.name), "out_channels", None)
        if given is not None and len(layer.gives) == 1:
            widths.setdefault(layer.gives[0], set()).add(given)
    return {
        group: width
        for group, (width, *others) in widths.items()
        if group in graph.free and not others and width < graph.sizes[group]
    }


def _first(graph: ChannelGraph, group: int) -> int:
    """Number of the first layer that gives the group."""
    return next(number for number, layer in enumerate(graph.layers) if group in layer.gives)


@dataclass(frozen=True)
class _Loss:
    """What a layer loses with channels it reads.

    Attributes:
        covariance: Of the channels, ``(N, N)``.
        importance: ``(N, N)``: the trace of its product with a covariance is the share of the layer's variance.
    """

    covariance: Tensor
    importance: Tensor


@dataclass(frozen=True)
class _Reader:
    """A layer that sums over channels.

    Attributes:
        layer: Its groups.
        weight: ``(channels it gives, channels it reads, voxels of the kernel)``.
        covariance: Of the channels it reads.
    """

    layer: Layer
    weight: Tensor
    covariance: Tensor

    def loss(self, group: int, graph: ChannelGraph, taken: Mapping[int, Tensor]) -> _Loss:
        """For a group it reads, if of what it gives only the channels taken count."""
        stay = torch.cat(
            [taken.get(given, torch.arange(graph.sizes[given])) + at for given, at in graph.starts(self.layer.gives)]
        )
        weight = self.weight[stay.to(self.weight.device)]
        variances = torch.einsum("oik,ij,ojk->o", weight, self.covariance, weight)
        weight = weight[variances > 0] / variances[variances > 0].sqrt()[:, None, None]
        at = dict(graph.starts(self.layer.reads))[group]
        own = slice(at, at + graph.sizes[group])
        importance = torch.einsum("oik,ojk->ij", weight[:, own], weight[:, own]) / len(stay)
        return _Loss(self.covariance[own, own], importance)


def _readers(graph: ChannelGraph, teacher: nn.Module, batches: Iterable[Tensor], positions: int) -> list[_Reader]:
    """The layers that read groups, with the covariances of what they read."""
    layers = [layer for layer in graph.layers if layer.reads]
    sums = {layer.name: _Sums(number, positions) for number, layer in enumerate(layers)}

    def add(name: str) -> Callable[..., None]:
        return lambda _module, read, _output: sums[name].add(read[0])

    hooks = [teacher.get_submodule(layer.name).register_forward_hook(add(layer.name)) for layer in layers]
    try:
        for images in batches:
            teacher(images)
    finally:
        for hook in hooks:
            hook.remove()
    readers = []
    for layer in layers:
        module: Any = teacher.get_submodule(layer.name)
        _, given = axes(module)
        weight = in_double(module.weight.movedim(given, 0).flatten(2))
        readers.append(_Reader(layer, weight, sums[layer.name].covariance))
    return readers


class _Sums:
    """Over positions of images.

    Args:
        number: Of the layer, for the draws.
        positions: How many are drawn from an image.
    """

    def __init__(self, number: int, positions: int) -> None:
        self._generator = torch.Generator().manual_seed(number)
        self._positions = positions
        self._products: Tensor | float = 0.0

    def add(self, features: Tensor) -> None:
        """``(B, channels, *spatial)``."""
        rows = features.movedim(1, -1).flatten(0, -2)
        drawn = draw(len(rows), self._positions * len(features), self._generator)
        rows = in_double(rows[drawn.to(rows.device)])
        rows = torch.cat((rows, torch.ones_like(rows[:, :1])), 1)
        self._products = self._products + rows.T @ rows

    @property
    def covariance(self) -> Tensor:
        """Of the channels."""
        assert isinstance(self._products, Tensor)
        moments = self._products / self._products[-1, -1]
        return moments[:-1, :-1] - torch.outer(moments[:-1, -1], moments[:-1, -1])


def _best(losses: Iterable[_Loss], count: int) -> Tensor:
    """Numbers of channels, in ascending order."""
    left = [[loss.covariance.clone(), loss.importance] for loss in losses]
    size = len(left[0][0])
    tolerances = [1e-9 * covariance.diagonal().mean() for covariance, _ in left]
    taken = torch.zeros(size, dtype=torch.bool, device=left[0][0].device)
    for _ in range(count):
        gain = torch.zeros(size, dtype=torch.float64, device=taken.device)
        for (covariance, importance), tolerance in zip(left, tolerances, strict=True):
            variance = covariance.diagonal()
            explained = ((covariance @ importance) * covariance).sum(1)
            gain += torch.where(variance > tolerance, explained / variance, 0.0)
        best = int(gain.masked_fill(taken, -1).argmax())
        taken[best] = True
        for entry, tolerance in zip(left, tolerances, strict=True):
            column = entry[0][:, best]
            if column[best] > tolerance:
                entry[0] = entry[0] - torch.outer(column, column) / column[best]
    return taken.nonzero()[:, 0].cpu()


def _order(taken: Tensor, size: int) -> Tensor:
    """The permutation that puts channels where :func:`channels_taken` finds them; the others keep their order."""
    places = torch.zeros(size, dtype=torch.bool)
    places[channels_taken(size, len(taken))] = True
    gone = torch.ones(size, dtype=torch.bool)
    gone[taken] = False
    order = torch.empty(size, dtype=torch.long)
    order[places] = taken
    order[~places] = gone.nonzero()[:, 0]
    return order
