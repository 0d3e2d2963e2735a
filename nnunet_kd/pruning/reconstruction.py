"""Fitting the layers of a smaller network, one after the other, to the outputs of a larger one's.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3: least squares on the
outputs of the whole network, from the inputs of the thinner one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.pruning.heads import Heads, MappedHeads, classes_of, draw_by_class, fit_head
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
    mapped: MappedHeads | None = None,
    teacher_batches: Sequence[Tensor] | None = None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    r"""Fit the student's convolutions, in the order in which they run, to the outputs of the teacher's.

    .. math:: \min_{W, b} \sum_p \lVert y^T(p) - W x^S(p) - b \rVert^2 + \lambda \lVert W \rVert^2

    over positions p drawn from the images. x^S is the input of the student's layer after all earlier layers have been
    fitted, and y^T the output of the teacher's layer in the channels the student has; a layer thus compensates for
    errors of earlier ones. :func:`nnunet_kd.pruning.linear_layers.linear_layers` lists the layers that are fitted. All
    other weights are kept.

    Least squares pull the logits of a rare class towards their mean, which is that of the background, and can lose the
    class. With ``heads``, a layer whose output is an output of the network is therefore fitted to the teacher's
    probabilities (:func:`nnunet_kd.pruning.heads.fit_head`).

    Args:
        teacher: A network with at least the student's widths, in evaluation mode. Layers that it does not run, such as
            heads of scales that are switched off, are not fitted.
        student: The same architecture with other widths, with the weights of
            :func:`nnunet_kd.pruning.selection.selected_weights`. They are changed in place.
        batches: Images ``(B, channels, *spatial)`` of one size, two or three spatial axes, on the device of both. The
            student runs on all of them at once.
        positions: The number of positions drawn per image and layer, if there are as many.
        ridge: lambda as a share of the mean variance of x, times the number of positions.
        heads: Whether the network's outputs are logits of exclusive ``"classes"`` or of ``"regions"``; ``None`` fits
            them by least squares like any other layer.
        mapped: How the student's outputs follow from the teacher's; ``None`` if they have the same classes.
        teacher_batches: The batches as the teacher sees them; ``None`` for the student's. If they have another size,
            the teacher's outputs are resampled to the student's grids.
        step: The function that is called after every batch of the teacher and after every layer.

    Returns:
        The name of every fitted layer, in running order -> the share of the variance of y that it explains.
    """
    training = student.training
    student.eval()
    try:
        layers = linear_layers(teacher, student, batches[0])
        targets = _targets(layers, teacher, teacher_batches or batches, positions, heads, mapped, step)
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
    """The output of a teacher's layer at drawn positions of a batch.

    Attributes:
        places: The drawn positions.
        rows: The outputs there, ``(positions, outputs)``.
        weights: The weight of each position; ``None`` weighs all equally.
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
    mapped: MappedHeads | None,
    step: Callable[[], None],
) -> dict[str, list[_Target]]:
    """Run the teacher once, and map the name of each layer that runs to its targets for all batches."""
    targets: dict[str, list[_Target]] = {}

    def keep(layer: LinearLayer) -> Callable[[Any, Any, Tensor], None]:
        def hook(_module: Any, _read: Any, output: Tensor) -> None:
            kept = targets.setdefault(layer.name, [])
            generator = torch.Generator().manual_seed(len(kept) << 20 | layer.number)
            of_head = heads if _is_head(layer) else None
            taught = layer.taught(mapped.logits(output) if mapped is not None and mapped.has(layer.name) else output)
            places, weights = _draw(layer.grid, taught, positions, of_head, generator)
            kept.append(_Target(places, layer.gives(taught, places), weights))

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

    For a head, positions of rare classes are drawn more often than others and have a lower weight.

    Args:
        grid: The size of the grid of positions.
        output: What the layer is fitted to, ``(B, channels, *spatial)``.
        positions: The number of positions to draw per image.
        heads: What the logits of a head belong to; ``None`` for other layers.
        generator: The random number generator, on the CPU.

    Returns:
        The positions and their weights; ``None`` in place of weights weighs all equally.
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
        images: The inputs of the student's layer, one tensor per batch.
        targets: The teacher's outputs, one entry per batch.
        ridge: As for :func:`reconstruct`.
        heads: As for :func:`reconstruct`.

    Returns:
        The share of the variance that is explained.
    """
    moments = Moments()
    inputs = []  # kept for a head, which reads them again
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
    """Regress the outputs of a layer on its inputs.

    Args:
        moments: The moments of the layer's inputs, followed by its outputs.
        outputs: The number of outputs.
        ridge: The penalty on squared weights, as a share of the mean scatter of the inputs.

    Returns:
        The weights ``(inputs, outputs)``, the intercepts, and the explained share of the outputs' variance.
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
