"""Weights of voxels that give structures of every size the same share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def area_weights(
    target: Tensor, grid: torch.Size, regions: bool, valid: Tensor | None, num_classes: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the weights of the foreground and of the background, each ``(B, 1, *grid)``.

    A voxel of a structure weighs one over the structure's number of voxels in the case, and one in several regions the
    most that one of them gives it. A voxel of the background weighs one over the background's number of voxels.

    Args:
        target: The class of every voxel, ``(B, 1, *annotated)``, 0 being the background; or with ``regions`` whether it
            is in each region, ``(B, regions, *annotated)``. Another annotation than the grid's is brought to it by
            PyTorch's ``nearest``.
        grid: The size of the grid.
        regions: Whether the target holds regions.
        valid: Which voxels are not ignored, boolean ``(B, 1, *annotated)``; ``None`` for all.
        num_classes: Classes are below this; looked up, which waits for the device, if left out.
        dtype: The type of the weights.
    """
    target = _on_grid(target, grid)
    counted = None if valid is None else _on_grid(valid.to(dtype), grid)
    if regions:
        members = (target > 0).to(dtype) if counted is None else (target > 0).to(dtype) * counted
        foreground = (members / _sizes(members)).amax(1, keepdim=True)
    else:
        numbers = target.flatten(1).long().clamp(min=0)
        if num_classes is None:
            num_classes = int(numbers.max()) + 1
        ones = torch.ones_like(numbers, dtype=dtype) if counted is None else counted.flatten(1)
        numbers = numbers.clamp(max=num_classes)  # beyond the classes is nothing, such as ignored voxels
        sizes = ones.new_zeros(len(numbers), num_classes + 1).scatter_add_(1, numbers, ones)
        shares = 1 / sizes.clamp(min=1)
        shares[:, 0] = shares[:, num_classes] = 0
        foreground = (shares.gather(1, numbers) * ones).view_as(target)
    background = (foreground == 0).to(dtype)
    if counted is not None:
        background = background * counted
    return foreground, background / _sizes(background)


def _sizes(members: Tensor) -> Tensor:
    """The number of voxels of every map, at least 1."""
    return members.flatten(2).sum(2).clamp(min=1).view(*members.shape[:2], *[1] * (members.ndim - 2))


def _on_grid(annotation: Tensor, grid: torch.Size) -> Tensor:
    if annotation.shape[2:] == grid:
        return annotation
    single = annotation if annotation.is_floating_point() else annotation.float()
    return F.interpolate(single, tuple(grid), mode="nearest")
