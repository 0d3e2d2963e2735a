"""Sums over the voxels of large tensors, chunk by chunk, so that no intermediate result has the size of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 2**26  # numbers in a tensor, from which sums over its voxels are computed by chunks
CHUNK = 2**23  # numbers of that tensor in a chunk


def is_large(tensor: Tensor) -> bool:
    """Return whether sums over the voxels of a tensor are to be computed by chunks."""
    return tensor.numel() >= LARGE


def sum_over_chunks(function: Callable[..., Tensor], maps: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> Tensor:
    """Sum a function over chunks of voxels, and compute every chunk again for the gradient.

    Only the maps and the shared tensors are kept for the gradient. The order of the sum, and so its rounding, is not
    that of a single chunk.

    Args:
        function: Maps chunks of all maps, followed by the shared tensors, to a scalar; a sum over voxels.
        maps: Tensors ``(B, C_i, *spatial)`` on the same grid, parted along the first spatial axis.
        shared: Tensors that every chunk gets as a whole, such as the weights of a layer.

    Returns:
        A scalar, differentiable once with respect to all tensors of a floating type.
    """
    total: Tensor = _SumOverChunks.apply(function, len(maps), *maps, *shared)
    return total


class _SumOverChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.count = function, count
        ctx.save_for_backward(*tensors)
        maps, shared = tensors[:count], tensors[count:]
        return torch.stack([function(*chunk, *shared) for chunk in in_chunks(maps)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count, needed = ctx.saved_tensors, ctx.count, ctx.needs_input_grad[2:]
        maps, shared = tensors[:count], tensors[count:]
        of_maps = [torch.empty_like(one) if wanted else one for one, wanted in zip(maps, needed, strict=False)]
        of_shared = [torch.zeros_like(one) for one in shared]
        for chunk, places in zip(in_chunks(maps), in_chunks(of_maps), strict=True):
            pairs = zip((*chunk, *shared), needed, strict=True)
            leaves = [one.detach().requires_grad_(wanted) for one, wanted in pairs]
            with torch.enable_grad():
                value = ctx.function(*leaves)
            found = iter(torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad], gradient))
            for number, wanted in enumerate(needed):
                if wanted and number < count:
                    places[number].copy_(next(found))
                elif wanted:
                    of_shared[number - count].add_(next(found))
        grads = (*of_maps, *of_shared)
        return None, None, *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True))


def in_chunks(maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Part all maps along the first spatial axis, so that no part of the largest exceeds :data:`CHUNK` by much."""
    parts = -(-max(one.numel() for one in maps) // CHUNK)
    step = -(-maps[0].shape[2] // parts)
    return zip(*(torch.split(one, step, 2) for one in maps), strict=True)
