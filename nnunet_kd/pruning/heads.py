"""Fitting the last layer of a segmentation network to the probabilities of its teacher.

The fit is a multinomial logistic regression on the teacher's soft labels (for regions, one binary regression each).
When it has converged, every class has the same total probability as in the teacher, however rare the class is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.pruning.moments import draw, in_double

Heads = Literal["classes", "regions"]  # logits belong to exclusive classes, or each to a region


@dataclass(frozen=True)
class MappedHeads:
    """The outputs of a student whose classes or regions are not its teacher's, but follow from them.

    Attributes:
        layers: The names of the layers that give logits.
        logits: The function that maps the teacher's logits ``(B, teacher's heads, *spatial)`` to the student's.
        mixing: A linear map near that function, ``(student's heads, teacher's heads)``, for weights before the fit.
    """

    layers: frozenset[str]
    logits: Callable[[Tensor], Tensor]
    mixing: Tensor

    def has(self, name: str) -> bool:
        """Return whether a layer, or the layer of a parameter, gives logits."""
        return name in self.layers or name.rpartition(".")[0] in self.layers

    def mixed(self, weight: Tensor) -> Tensor:
        """Map a weight or bias of the teacher's, whose first axis is that of its heads."""
        mixed: Tensor = torch.tensordot(self.mixing.to(weight), weight, 1)
        return mixed


ITERATIONS = 60
PENALTY = 1e-4  # on squared weights, with inputs normalised to unit variance


def classes_of(logits: Tensor, heads: Heads) -> Tensor:
    """Return the index of each voxel's class.

    Args:
        logits: The logits, ``(B, heads, *spatial)``.
        heads: Whether logits belong to classes or regions. Voxels in the same regions have the same class.

    Shape:
        ``(B * voxels,)``.
    """
    if heads == "classes":
        return logits.argmax(1).flatten()
    inside = (logits > 0).movedim(1, -1).flatten(0, -2)
    numbers: Tensor = torch.unique(inside, dim=0, return_inverse=True)[1]
    return numbers


def draw_by_class(classes: Tensor, wanted: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw positions, half of them from all positions and half in equal parts from the classes that are present.

    Args:
        classes: The class index of each position, ``(positions,)``.
        wanted: The number of positions to draw.
        generator: The random number generator, on the CPU.

    Returns:
        The indices of the drawn positions and their weights, with which a weighted sum over them is in expectation
        proportional to the sum over all; both ``(drawn,)``, on the CPU.
    """
    classes = classes.cpu()
    values, numbers, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    share = wanted // (2 * len(values))
    drawn = [draw(len(classes), wanted // 2, generator)]
    for number, count in enumerate(counts.tolist()):
        there = (numbers == number).nonzero()[:, 0]
        drawn.append(there[torch.randint(count, (share,), generator=generator)])
    positions = torch.cat(drawn)
    expected = wanted // 2 / len(classes) + share / counts  # how often a position of the class is drawn
    weights = 1 / expected[numbers[positions]]
    return positions, weights / weights.mean()


@torch.enable_grad()
def fit_head(
    read: Tensor, logits: Tensor, counts: Tensor, weight: Tensor, bias: Tensor, heads: Heads
) -> tuple[Tensor, Tensor]:
    r"""Fit the linear map with the least divergence from the teacher's probabilities.

    .. math:: \min_{W, b} \sum_p c_p \, \mathrm{KL}\big(q(y_p) \,\Vert\, q(W x_p + b)\big)

    with q the softmax over the classes, or for regions the sigmoid of each. The problem is convex; L-BFGS solves it.

    Args:
        read: x, the layer's inputs, ``(positions, inputs)``.
        logits: y, the teacher's logits, ``(positions, heads)``.
        counts: c, the weight of each position, ``(positions,)``.
        weight: The initial W, ``(inputs, heads)``.
        bias: The initial b, ``(heads,)``.
        heads: Whether logits belong to classes or regions.

    Returns:
        The fitted W and b in these shapes.
    """
    read, logits = in_double(read), in_double(logits)
    counts = counts.to(read) / counts.sum()
    mean = read.mean(0)
    spread = read.std(0, correction=0).clamp(min=1e-6 * float(read.std() + 1e-30))
    read = (read - mean) / spread
    weight = weight.to(read)
    bias = (bias.to(read) + mean @ weight).requires_grad_()
    weight = (weight * spread[:, None]).clone(memory_format=torch.contiguous_format).requires_grad_()
    taught = logits.sigmoid() if heads == "regions" else logits.softmax(1)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def divergence() -> Tensor:
        optimizer.zero_grad()
        given = torch.addmm(bias, read, weight)
        if heads == "regions":
            each = F.binary_cross_entropy_with_logits(given, taught, reduction="none").sum(1)
        else:
            each = -(taught * given.log_softmax(1)).sum(1)
        loss = (counts * each).sum() + PENALTY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(divergence)  # type: ignore[no-untyped-call]
    weight = weight.detach() / spread[:, None]
    return weight, bias.detach() - mean @ weight
