"""Weights of a smaller network whose layers give, one after the other, what those of a larger one give.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3: least squares on the
outputs of the whole network, from the inputs of the thinner one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.pruning.heads import Heads, classes_of, draw_by_class, fit_head
from nnunet_kd.pruning.hooks import hooks
from nnunet_kd.pruning.linear_layers import Convolution, LinearLayer, Places, linear_layers
from nnunet_kd.pruning.moments import Moments, draw


@torch.no_grad()
def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Tensor],
    positions: int = 2048,
    ridge: float = 1e-3,
    *,
    heads: Heads | None = None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    r"""Fit the student's convolutions, in the order in which they run, to the outputs of the teacher's.

    .. math:: \min_{W, b} \sum_p \lVert y^T(p) - W x^S(p) - b \rVert^2 + \lambda \lVert W \rVert^2

    over positions p drawn from the images. x is what the student's layer reads there once all layers before it are
    fitted, y what the teacher's gives in the channels the student has; so a layer makes up for errors of earlier ones
    as far as it can. :func:`nnunet_kd.pruning.linear_layers.linear_layers` says which layers are fitted. All other
    weights remain as they are.

    Least squares pull the logits of a rare class towards their mean, which is that of the background, and can so lose
    the class. A head, a layer whose output is one of the network's, is fitted to the teacher's probabilities instead
    where ``heads`` says what its outputs are (:func:`nnunet_kd.pruning.heads.fit_head`).

    Args:
        teacher: A network with at least the student's widths, in evaluation mode. Layers that it does not run, such as
            heads it was not trained with, are not fitted.
        student: The same network but for its widths, with the weights of
            :func:`nnunet_kd.pruning.selection.selected_weights`. They are changed in place.
        batches: Images ``(B, channels, *spatial)`` of one size, two or three spatial axes, on the device of both. The
            student runs on all of them at once.
        positions: How many are drawn per image and layer, where there are as many.
        ridge: lambda as a share of the mean variance of x, times the number of positions.
        heads: ``"classes"``: the network's outputs are logits of exclusive classes; ``"regions"``: each is the logit
            of a region; ``None``: they are fitted by least squares, as those of any other layer.
        step: Called after every batch of the teacher's and after every layer.

    Returns:
        Name of every layer that was fitted, in their order -> share of y's variance it explains.
    """
    training = student.training
    student.eval()
    try:
        layers = linear_layers(teacher, student, batches[0])
        targets = _targets(layers, teacher, batches, positions, heads, step)
        explained: dict[str, float] = {}

        def fit(layer: LinearLayer) -> Callable[[Any, tuple[Tensor]], None]:
            def hook(_: Any, read: tuple[Tensor]) -> None:
                images = torch.split(read[0], [len(batch) for batch in batches])
                explained[layer.name] = _fit(layer, images, targets.pop(layer.name), ridge, heads)
                step()

            return hook

        with hooks(layer.student.register_forward_pre_hook(fit(layer)) for layer in layers if layer.name in targets):
            student(torch.cat([*batches]))
        return explained
    finally:
        student.train(training)


@dataclass(frozen=True)
class _Target:
    """What the teacher's layer gives for a batch.

    Attributes:
        places: Positions that were drawn.
        rows: The output there, ``(positions, numbers)``.
        weights: How much each position counts; ``None``: all the same.
    """

    places: Places
    rows: Tensor
    weights: Tensor | None


def _targets(
    layers: Sequence[LinearLayer],
    teacher: nn.Module,
    batches: Iterable[Tensor],
    positions: int,
    heads: Heads | None,
    step: Callable[[], None],
) -> dict[str, list[_Target]]:
    """Run the teacher once, and map the name of each layer it runs to what it gives for each batch."""
    targets: dict[str, list[_Target]] = {}

    def keep(layer: LinearLayer) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def hook(_: Any, read: tuple[Tensor], output: Tensor) -> None:
            kept = targets.setdefault(layer.name, [])
            generator = torch.Generator().manual_seed(len(kept) << 20 | layer.number)
            of_head = heads if _is_head(layer) else None
            places, weights = _draw(layer.grid(read[0], output), output, positions, of_head, generator)
            kept.append(_Target(places, layer.gives(layer.taught(output), places), weights))

        return hook

    with hooks(layer.teacher.register_forward_hook(keep(layer)) for layer in layers):
        for images in batches:
            teacher(images)
            step()
    return targets


def _is_head(layer: LinearLayer) -> bool:
    return layer.is_output and isinstance(layer, Convolution)


def _draw(
    grid: Sequence[int], output: Tensor, positions: int, heads: Heads | None, generator: torch.Generator
) -> tuple[Places, Tensor | None]:
    """Draw positions from the images of a batch.

    Those of rare classes are drawn from a head's output more often than others, and count less.

    Args:
        grid: Size of the grid of positions.
        output: The teacher's, ``(B, channels, *spatial)``.
        positions: How many to draw per image.
        heads: What the output is, if it is a head's.
        generator: On the CPU.

    Returns:
        Positions, and how much each counts; ``None``: all the same.
    """
    size = (len(output), *grid)
    count, wanted = torch.Size(size).numel(), positions * len(output)
    if heads is not None and wanted < count:
        drawn, weights = draw_by_class(classes_of(output, heads), wanted, generator)
    else:
        drawn, weights = draw(count, wanted, generator), None
    return torch.unravel_index(drawn.to(output.device), size), weights


def _fit(
    layer: LinearLayer, images: Iterable[Tensor], targets: Sequence[_Target], ridge: float, heads: Heads | None
) -> float:
    """Fit one layer.

    Args:
        layer: The layer.
        images: What the student is about to read, a tensor for each batch.
        targets: What it has to give, for each batch.
        ridge: As for :func:`reconstruct`.
        heads: As for :func:`reconstruct`.

    Returns:
        Share of the variance that is explained.
    """
    moments = Moments()
    inputs = []  # a head's, which are read again
    for read, target in zip(images, targets, strict=True):
        rows = layer.reads(read, target.places)
        moments.add(torch.cat((rows, target.rows), 1), target.weights)
        if heads is not None and _is_head(layer):
            inputs.append(rows)
    weight, bias, explained = _regress(moments, targets[0].rows.shape[1], ridge)
    if heads is not None and inputs:
        counts = [torch.ones(len(one.rows)) if one.weights is None else one.weights for one in targets]
        logits = torch.cat([one.rows for one in targets])
        weight, bias = fit_head(torch.cat(inputs), logits, torch.cat(counts), weight, bias, heads)
    layer.assign(weight, bias)
    return explained


def _regress(moments: Moments, outputs: int, ridge: float) -> tuple[Tensor, Tensor, float]:
    """Regress the last numbers of every position on those before them.

    Args:
        moments: Of what a layer reads, and behind it of what it has to give.
        outputs: How many numbers it gives.
        ridge: Penalty of squared weights, as a share of the mean scatter of what is read.

    Returns:
        Weights ``(inputs, outputs)``, intercepts, and the share of the outputs' variance that is explained.
    """
    mean, scatter = moments.mean, moments.scatter
    count = len(mean) - outputs
    read, both, given = scatter[:count, :count], scatter[:count, count:], scatter[count:, count:]
    spread = read.diagonal().mean()
    penalty = ridge * torch.where(spread > 0, spread, torch.ones_like(spread))
    weight = torch.linalg.solve(read + torch.diag(penalty.expand(count)), both)
    variance = given.diagonal().sum()
    residual = variance - 2 * (weight * both).sum() + (weight * (read @ weight)).sum()
    return weight, mean[count:] - mean[:count] @ weight, float(1 - residual / variance) if variance > 0 else 1.0
