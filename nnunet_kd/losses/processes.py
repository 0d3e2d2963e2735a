"""Batches that are spread over the processes of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable


def process_count() -> int:
    """Return the number of processes that train together, 1 outside a distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batches_of_processes(batch: int, device: torch.device) -> list[int]:
    """Return the batch size of every process in order of rank.

    All processes must call it together. It waits for the device.

    Args:
        batch: The batch size of this process.
        device: The device of this process's batch.
    """
    if process_count() == 1:
        return [batch]
    own = torch.tensor([batch], device=device)
    sizes = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def gathered(tensor: Tensor, batches: list[int]) -> Tensor:
    """Return the cases of all processes in order of rank, with a gradient to those of this process.

    That gradient is multiplied by the number of processes. Every process computes the same loss of all cases and
    differentiates it with respect to its own, so the mean over the processes, which DDP takes, is the gradient of the
    joint batch. Nothing is communicated in the backward pass.

    Args:
        tensor: The cases of this process, ``(B, ...)``.
        batches: The batch size of every process, as :func:`batches_of_processes` returns it.

    Shape:
        ``(B, ...)`` to ``(sum of all B, ...)``.
    """
    if process_count() == 1:
        return tensor
    most, rank = max(batches), dist.get_rank()
    own = tensor.detach()
    if len(own) < most:
        own = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in batches]
    dist.all_gather(parts, own.contiguous())
    cases = [part[:count] for part, count in zip(parts, batches, strict=True)]
    cases[rank] = _TimesInBackward.apply(tensor, float(len(batches)))
    return torch.cat(cases)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without a gradient."""
    mean = tensor.detach().clone()
    if process_count() > 1:
        dist.all_reduce(mean)
        mean /= process_count()
    return mean


class _TimesInBackward(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.factor * gradient, None
