"""Averages of features over the masked voxels of every cell of a coarse grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.chunks import in_chunks, is_large
from nnunet_kd.wavelets import constants, multiply_axis

REDUCTION = 4  # of every axis
FEWEST_CELLS = 2  # along an axis
LEAST_SHARE = 1e-4  # of a cell that the mask must cover


def pooled_grid(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of the averages: a quarter of every axis, rounded down, but at least two cells."""
    return tuple(max(FEWEST_CELLS, length // REDUCTION) for length in grid)


def masked_averages(maps: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """Average features over the masked voxels of every cell, as adaptive average pooling divides the grid.

    A cell of which the mask covers less than a ten-thousandth is 0.

    Args:
        maps: Features on the same grid, each ``(B, C_i, *spatial)`` of any floating type.
        mask: The voxels that count, boolean ``(B, 1, *annotated)``, brought to the grid by PyTorch's ``nearest``;
            ``None`` for all.
        dtype: The type to compute in.

    Shape:
        ``(B, C_i, *spatial)`` to ``(B, C_i, *pooled_grid(spatial))``.
    """
    grid, device = maps[0].shape[2:], maps[0].device
    cells = zip(grid, pooled_grid(grid), strict=True)
    matrices = [_averaging(before, after, dtype, device) for before, after in cells]
    if mask is None:
        return [_averages(one, None, matrices) for one in maps]
    weights = mask.to(dtype)
    if weights.shape[2:] != grid:
        weights = F.interpolate(weights, tuple(grid), mode="nearest")
    covered = _averages(weights, None, matrices)
    present = covered > LEAST_SHARE
    divisor = torch.where(present, covered, 1)
    return [torch.where(present, _averages(one, weights, matrices) / divisor, 0) for one in maps]


def _averages(features: Tensor, weights: Tensor | None, matrices: Sequence[Tensor]) -> Tensor:
    """Average over every cell, of large features chunk by chunk, so that no product with the weights is that large."""
    together = (features,) if weights is None else (features, weights)
    parts = []
    for chunk in in_chunks(together) if is_large(features) else [together]:
        part = chunk[0].to(matrices[0].dtype)
        if weights is not None:
            part = part * chunk[1]
        for axis in range(len(matrices) - 1, 0, -1):  # the first axis is that of the chunks
            part = multiply_axis(part, matrices[axis], axis)
        parts.append(part)
    return multiply_axis(torch.cat(parts, 2), matrices[0], 0)


@constants(maxsize=256)
def _averaging(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of adaptive average pooling along one axis, ``(after, before)``."""
    unit = torch.eye(before, dtype=torch.float64)
    return F.adaptive_avg_pool1d(unit, after).T.to(device, dtype).contiguous()
