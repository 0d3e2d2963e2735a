"""Choosing the teacher's channels that a student keeps, so that the layers that read them lose least.

Luo et al., "ThiNet", ICCV 2017, choose the channels to keep greedily by the output of the next layer, from the last
layer to the first, so that only kept channels of a layer's output count. Here a removed channel is not replaced by zero
but by its least-squares prediction from the kept channels, because
:func:`nnunet_kd.pruning.reconstruction.reconstruct` later fits the layers in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.pruning.channel_graph import ChannelGraph, Layer, axes
from nnunet_kd.pruning.channel_tracing import channel_graph
from nnunet_kd.pruning.heads import MappedHeads
from nnunet_kd.pruning.hooks import hooks
from nnunet_kd.pruning.moments import Moments, draw, in_double
from nnunet_kd.pruning.selection import channels_taken


@torch.no_grad()
def sort_channels(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Tensor],
    positions: int = 2048,
    *,
    mapped: MappedHeads | None = None,
    step: Callable[[], None] = lambda: None,
) -> int:
    r"""Reorder the teacher's channels in place, so that a student takes the most valuable ones.

    From each group of channels that share their order (:func:`nnunet_kd.pruning.channel_tracing.channel_graph`), the
    next channel taken is the one that adds most to

    .. math:: \frac{1}{|O|} \sum_{o \in O} \sum_k
        \frac{w_{ok}^T (C - R) w_{ok}}{\sum_{k'} w_{ok'}^T C w_{ok'}},

    summed over the layers that read the group. C is the covariance of a layer's input over positions drawn from the
    images, R the residual covariance after regression on the channels taken; the numerator is restricted to the
    group's channels. O are the channels of the layer's output that the student has, and w_ok their weights at voxel k
    of the kernel, whose voxels are treated as independent.

    Args:
        teacher: A network in evaluation mode. Its outputs change by rounding only.
        student: The same architecture with other widths; only the widths are read.
        batches: Images ``(B, channels, *spatial)``, on the teacher's device.
        positions: The number of positions drawn per image and layer, if there are as many.
        mapped: How the student's outputs follow from the teacher's; ``None`` if they have the same classes.
        step: The function that is called after every batch.

    Returns:
        The number of reordered groups.

    Raises:
        ValueError: If the teacher's channels cannot be traced.
    """
    graph = channel_graph(teacher)
    wanted = _widths(graph, student)
    readers = _readers(graph, teacher, batches, positions, mapped, step)
    taken: dict[int, Tensor] = {}
    for group in sorted(wanted, key=lambda group: _first(graph, group), reverse=True):
        losses = [reader.loss(group, graph, taken) for reader in readers if group in reader.layer.reads]
        if losses:
            taken[group] = _best(losses, wanted[group])
    graph.reorder(teacher, {group: _order(chosen, graph.sizes[group]) for group, chosen in taken.items()})
    return len(taken)


def _widths(graph: ChannelGraph, student: nn.Module) -> dict[int, int]:
    """Return the student's number of channels for every free group that is narrower in the student."""
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
    """Return the index of the first layer whose output contains the group."""
    return next(number for number, layer in enumerate(graph.layers) if group in layer.gives)


@dataclass(frozen=True)
class _Loss:
    """The loss of a layer without some of the channels it reads.

    Attributes:
        covariance: The covariance of the N channels of a group, ``(N, N)``.
        importance: A matrix ``(N, N)``; the trace of its product with a covariance is a share of the layer's output
            variance.
    """

    covariance: Tensor
    importance: Tensor


@dataclass(frozen=True)
class _Reader:
    """A layer that sums over channels, with the statistics of its input.

    Attributes:
        layer: The layer with its groups.
        weight: The weight, ``(output channels, input channels, voxels of the kernel)``.
        covariance: The covariance of the input channels.
        mapped: Whether the output channels are the student's heads instead of the layer's own.
    """

    layer: Layer
    weight: Tensor
    covariance: Tensor
    mapped: bool

    def loss(self, group: int, graph: ChannelGraph, taken: Mapping[int, Tensor]) -> _Loss:
        """Return the loss for a group that the layer reads; of its output, only the channels taken count."""
        stay = torch.cat(
            [taken.get(given, torch.arange(graph.sizes[given])) + at for given, at in graph.starts(self.layer.gives)]
        )
        weight = self.weight if self.mapped else self.weight[stay.to(self.weight.device)]
        outputs = len(weight)
        variances = torch.einsum("oik,ij,ojk->o", weight, self.covariance, weight)
        weight = weight[variances > 0] / variances[variances > 0].sqrt()[:, None, None]
        at = dict(graph.starts(self.layer.reads))[group]
        own = slice(at, at + graph.sizes[group])
        importance = torch.einsum("oik,ojk->ij", weight[:, own], weight[:, own]) / outputs
        return _Loss(self.covariance[own, own], importance)


def _readers(
    graph: ChannelGraph,
    teacher: nn.Module,
    batches: Iterable[Tensor],
    positions: int,
    mapped: MappedHeads | None,
    step: Callable[[], None],
) -> list[_Reader]:
    """Run the teacher, and return the layers that read groups, with the covariances of their inputs."""
    layers = [layer for layer in graph.layers if layer.reads]
    moments = [Moments() for _ in layers]

    def add(number: int) -> Callable[..., None]:
        generator = torch.Generator().manual_seed(number)

        def hook(_module: Any, read: tuple[Tensor], _output: Any) -> None:
            rows = read[0].movedim(1, -1).flatten(0, -2)
            drawn = draw(len(rows), positions * len(read[0]), generator)
            moments[number].add(rows[drawn.to(rows.device)])

        return hook

    modules: list[Any] = [teacher.get_submodule(layer.name) for layer in layers]
    with hooks(module.register_forward_hook(add(number)) for number, module in enumerate(modules)):
        for images in batches:
            teacher(images)
            step()
    readers = []
    for layer, module, seen in zip(layers, modules, moments, strict=True):
        weight = in_double(module.weight.movedim(axes(module)[1], 0).flatten(2))
        if mapped is not None and layer.name in mapped.layers:
            readers.append(_Reader(layer, mapped.mixed(weight), seen.covariance, True))
        else:
            readers.append(_Reader(layer, weight, seen.covariance, False))
    return readers


def _best(losses: Iterable[_Loss], count: int) -> Tensor:
    """Choose channels greedily one by one, and return their indices in ascending order."""
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
    """Return the permutation that moves channels to where :func:`channels_taken` finds them."""
    places = torch.zeros(size, dtype=torch.bool)
    places[channels_taken(size, len(taken))] = True
    gone = torch.ones(size, dtype=torch.bool)
    gone[taken] = False
    order = torch.empty(size, dtype=torch.long)
    order[places] = taken
    order[~places] = gone.nonzero()[:, 0]
    return order
