"""Errors of maps that are linearly resized to a finer grid, computed on their own grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.chunks import in_chunks, is_large, sum_over_chunks
from nnunet_kd.losses.features import energy, single_precision
from nnunet_kd.wavelets import constants, multiply_axis


def resized_errors(maps: Sequence[Tensor], target: Tensor) -> Tensor:
    r"""Sum of the mean squared errors of maps, each linearly resized to the target's grid; computed on their own grids.

    Resizing is a matrix R with orthonormal factor Q, :math:`R = Q U`, so an error has two parts, what the coarse grid
    can express and what it cannot:

    .. math:: \|R x - t\|^2 = \|U x - Q^T t\|^2 + \|t\|^2 - \|Q^T t\|^2

    No map is made of the target's size, which matters where every level of a network is compared with the finest.

    Args:
        maps: ``(B, C, *spatial)`` each, two or three spatial axes.
        target: ``(B, C, *other_spatial)``.

    Returns:
        A scalar, differentiable with respect to all. Rounding is relative to the target's mean square.
    """
    if is_large(target):
        return _errors_of_large(maps, target) / target.numel()
    total = target.new_zeros(())
    whole = energy(target) if any(features.shape != target.shape for features in maps) else total
    seen: dict[torch.Size, tuple[Tensor, Tensor]] = {}
    for features in maps:
        if features.shape == target.shape:
            total = total + energy(features - target)
            continue
        factors = _factors(features, target.shape)
        if features.shape not in seen:
            expressible = along_axes(target, [orthonormal.T for orthonormal, _ in factors])
            seen[features.shape] = expressible, torch.where(whole.isinf(), whole, whole - energy(expressible))
        expressible, rest = seen[features.shape]
        total = total + energy(along_axes(features, [upper for _, upper in factors]) - expressible) + rest
    return total / target.numel()


def _errors_of_large(maps: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum of squared errors, of which the target keeps its type and is read chunk by chunk."""
    total = torch.zeros((), dtype=single_precision(*maps, target), device=target.device)
    seen: dict[torch.Size, tuple[Tensor, Tensor]] = {}
    for features in maps:
        if features.shape == target.shape:
            total = total + sum_over_chunks(_squares, (features, target))
            continue
        factors = _factors(features, target.shape)
        if features.shape not in seen:
            with torch.no_grad():
                seen[features.shape] = _expressible(target, [one for one, _ in factors])
        coarse = along_axes(features, [upper for _, upper in factors])
        total = total + _ErrorOfLarge.apply(coarse, target, *seen[features.shape], *(one for one, _ in factors))
    return total


def _squares(features: Tensor, target: Tensor) -> Tensor:
    dtype = single_precision(features, target)
    return energy(features.to(dtype) - target.to(dtype))


def _expressible(target: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the coarse grid can express of a large target, and the energy of what it cannot; without a gradient."""
    parts, energies = [], []
    for (chunk,) in in_chunks((target,)):
        single = chunk.to(factors[0].dtype)
        energies.append(energy(single))
        for axis in range(len(factors) - 1, 0, -1):  # the first axis is that of the chunks
            single = multiply_axis(single, factors[axis].T, axis)
        parts.append(single)
    expressible = multiply_axis(torch.cat(parts, 2), factors[0].T, 0)
    whole = torch.stack(energies).sum()
    return expressible, torch.where(whole.isinf(), whole, whole - energy(expressible))


class _ErrorOfLarge(torch.autograd.Function):
    """Squared error of a coarse map, given in the orthonormal basis, whose gradient to the target is made by chunks."""

    @staticmethod
    def forward(ctx: Any, coarse: Tensor, target: Tensor, expressible: Tensor, rest: Tensor, *bases: Tensor) -> Tensor:
        ctx.save_for_backward(coarse, target, expressible, *bases)
        return energy(coarse - expressible) + rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        coarse, target, expressible, *bases = ctx.saved_tensors
        of_coarse = of_target = None
        if ctx.needs_input_grad[0]:
            of_coarse = 2 * gradient * (coarse - expressible)
        if ctx.needs_input_grad[1]:
            of_target = torch.empty_like(target)
            rows = torch.arange(target.shape[2], device=target.device).view(1, 1, -1, *[1] * (target.ndim - 3))
            for taught, place, row in in_chunks((target, of_target, rows)):
                resized = multiply_axis(coarse, bases[0][row.flatten()], 0)
                for axis in range(1, len(bases)):
                    resized = multiply_axis(resized, bases[axis], axis)
                place.copy_(2 * gradient * (taught.to(resized.dtype) - resized))
        return of_coarse, of_target, None, None, *(None for _ in bases)


def _factors(features: Tensor, grid: torch.Size) -> list[tuple[Tensor, Tensor]]:
    """Q and U of every axis."""
    pairs = zip(features.shape[2:], grid[2:], strict=True)
    return [_resizing(before, after, features.dtype, features.device) for before, after in pairs]


@constants(maxsize=256)
def _resizing(before: int, after: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Q and U of linear resizing along one axis."""
    orthonormal, upper = torch.linalg.qr(resizing_matrix(before, after))
    return orthonormal.to(device, dtype), upper.to(device, dtype)


def resizing_matrix(before: int, after: int) -> Tensor:
    """R of linear resizing along one axis, ``align_corners=False``: ``(after, before)``, float64."""
    unit = torch.eye(before, dtype=torch.float64)
    return F.interpolate(unit[None], size=after, mode="linear", align_corners=False)[0].T


def along_axes(tensor: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each spatial axis multiplied with its matrix, the last first: it is contiguous."""
    for axis, matrix in reversed(list(enumerate(matrices))):
        tensor = multiply_axis(tensor, matrix, axis)
    return tensor
