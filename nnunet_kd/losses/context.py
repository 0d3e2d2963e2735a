"""Contexts: sums of features over all voxels with learned weights, for ReCo-KD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nnunet_kd.losses.chunks import in_chunks


class ContextBlock(nn.Module):
    """What a network adds to its features for their context (Cao et al., "GCNet", ICCVW 2019).

    The weight of a voxel is the softmax, over all voxels, of a learned combination of its channels. The bias of that
    combination cancels and is left out. The last layer starts at 0, so at first nothing is added.

    Args:
        channels: The width of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.attention = nn.Parameter(torch.randn(channels) * (2 / channels) ** 0.5)
        last = nn.Linear(hidden, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.transform = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), last)


def context(features: Tensor, attention: Tensor, large: bool) -> Tensor:
    """Return the sum of the features over all voxels, each weighted by the softmax of its combined channels.

    Args:
        features: ``(B, C, *spatial)``, any floating type.
        attention: The weights of the channels, ``(C,)``, in the type to compute in.
        large: Whether to compute chunk by chunk, and again for the gradient.

    Shape:
        ``(B, C)``.
    """
    (scores,) = by_chunks(_scores, (features,), (attention,), large, parted=1)
    weights = torch.softmax(scores.flatten(1), 1).view(scores.shape)
    (sums,) = by_chunks(_weighted_sum, (features, weights), (), large)
    return sums


def _scores(features: Tensor, attention: Tensor) -> tuple[Tensor]:
    combined: Tensor = _Combination.apply(features.flatten(2).to(attention.dtype), attention)
    return (combined.view(len(features), 1, *features.shape[2:]),)


def _weighted_sum(features: Tensor, weights: Tensor) -> tuple[Tensor]:
    sums: Tensor = _WeightedSum.apply(features.flatten(2).to(weights.dtype), weights.flatten(2))
    return (sums,)


class _Combination(torch.autograd.Function):
    """The weighted sum over the channels of ``(B, C, voxels)``, of which autograd would make a transposed copy."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, attention: Tensor) -> Tensor:
        ctx.save_for_backward(features, attention)
        return attention.expand(len(features), 1, -1) @ features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, attention = ctx.saved_tensors
        of_features = attention[:, None] * gradient if ctx.needs_input_grad[0] else None
        return of_features, (features @ gradient.transpose(1, 2)).sum((0, 2))


class _WeightedSum(torch.autograd.Function):
    """The weighted sum over the voxels of ``(B, C, voxels)``, of which autograd would make a transposed copy."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(features, weights)
        return (features @ weights.transpose(1, 2))[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weights = ctx.saved_tensors
        of_features = gradient[..., None] * weights if ctx.needs_input_grad[0] else None
        return of_features, gradient[:, None] @ features


def by_chunks(
    function: Callable[..., Sequence[Tensor]],
    maps: Sequence[Tensor],
    shared: Sequence[Tensor],
    large: bool,
    parted: int = 0,
) -> list[Tensor]:
    """Apply a function to the maps, or to chunks of large ones, which are computed again for the gradient.

    Args:
        function: Maps chunks of all maps, followed by the shared tensors, to tensors.
        maps: Tensors ``(B, C_i, *spatial)`` on the same grid, parted along the first spatial axis.
        shared: Tensors that every chunk gets as a whole.
        large: Whether to compute chunk by chunk.
        parted: How many of the results, counted from the first, are maps, which are joined. The others are summed.
    """
    if not large:
        return [*function(*maps, *shared)]
    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    chunks = [checkpoint(function, *chunk, *shared, **options) for chunk in in_chunks(maps)]
    results = [*zip(*chunks, strict=True)]
    joined = [torch.cat(result, 2) for result in results[:parted]]
    return [*joined, *(torch.stack(result).sum(0) for result in results[parted:])]
