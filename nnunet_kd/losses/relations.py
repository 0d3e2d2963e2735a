"""What losses on relations share: embeddings of the parts of a map, directions, and the batch of all processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.chunks import is_large
from nnunet_kd.losses.processes import batches_of_processes, process_count

EPS = 1e-12  # least norm that is divided by


def pooled(features: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """Return the mean features of boxes, ``(B, C, *spatial)`` to ``(B, boxes, C)``.

    Args:
        features: The features, two or three spatial axes.
        parts: The most boxes along an axis; an axis that is shorter has one per voxel.
        dtype: The floating type of the result, in which the means are computed.
    """
    sizes = [min(parts, side) for side in features.shape[2:]]
    pool: Any = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(sizes)]
    cases = torch.split(features, 1) if is_large(features) else (features,)
    means: Tensor = torch.cat([pool(case.to(dtype), sizes) for case in cases])
    return means.flatten(2).transpose(1, 2)


def directions(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return vectors of length 1; one of length 0 has no direction, and neither a value nor a gradient."""
    norms = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return divided(vectors, norms)


def divided(vectors: Tensor, norms: Tensor) -> Tensor:
    """Return vectors divided by their lengths; 0 without a gradient where the length is 0."""
    units: Tensor = vectors / norms.clamp(min=EPS)
    return units.masked_fill(norms == 0, 0)


class JointBatch:
    """The batches of all processes of a training as one, in the order of their ranks.

    DDP averages gradients over the processes. A loss that sums over the process's own :attr:`rows` of relations, times
    :attr:`processes`, thus has the gradient of the sum over all rows.

    Args:
        tensor: A tensor whose first axis is the batch of this process.

    Attributes:
        processes: The number of processes.
        size: The size of the joint batch.
        rows: The place of this process's batch in it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.processes = process_count()
        self._sizes: tuple[int, ...] = (len(tensor),)
        first = 0
        if self.processes > 1:
            self._sizes = _sizes_of_all(len(tensor), self.processes, tensor.device)
            first = sum(self._sizes[: dist.get_rank()])
        self.size = sum(self._sizes)
        self.rows = slice(first, first + len(tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, joined along the first axis; gradients flow back to each of them."""
        if self.processes == 1:
            return tensor
        joint: Tensor = _Gather.apply(tensor, self._sizes, self.rows)
        return joint


@cache
def _sizes_of_all(size: int, processes: int, device: torch.device) -> tuple[int, ...]:
    """Return the sizes of all processes' batches; nnU-Net's stay the same, so that this waits for the device once."""
    sizes = batches_of_processes(size, device)
    assert len(sizes) == processes
    return tuple(sizes)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: tuple[int, ...], rows: slice) -> Tensor:
        ctx.rows = rows
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return torch.cat([one[:size] for one, size in zip(received, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rows], None, None
