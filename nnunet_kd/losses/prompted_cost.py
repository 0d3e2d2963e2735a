"""FreeKD's cost of masked wavelet bands and the tuning of their prompts, with the gradients written out.

All bands of a level are stacked (:mod:`nnunet_kd.losses.stacked_bands`). Tensors of the teacher's width are overwritten
step by step and never kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.features import single_precision
from nnunet_kd.losses.stacked_bands import StackedBands


def prompted_cost(
    student: Tensor, weight: Tensor, teacher: Tensor, tokens: Tensor, wavelet: str, square: float
) -> Tensor:
    r"""Cost of the residual ``r = W s - t``: its squares, and the mean absolute value of its details under masks.

    .. math:: \mathrm{square} \cdot \|r\|^2 + \sum_l \frac{1}{n_l} \sum \bar M_l\, |R_l(r)|

    with :math:`n_l` the number of detail coefficients of level l. The gradient, to student and weight, is taken at
    once, so that only tensors of their sizes are kept for it.

    Args:
        student: Features of any floating type.
        weight: phi, in the type to compute in.
        teacher: Features of any floating type.
        tokens: The prompts, the coarsest level first.
        wavelet: PyWavelets name of an orthogonal wavelet.
        square: Weight of the squares.

    Shape:
        ``(B, C_S, *spatial)``, ``(C_T, C_S)``, ``(B, C_T, *spatial)`` with an axis of more than one voxel,
        ``(levels, details, n, C_T)`` to a scalar.
    """
    cost: Tensor = _PromptedCost.apply(student, weight, teacher, tokens, wavelet, square)
    return cost


def filtered_by_prompts(teacher: Tensor, tokens: Tensor, wavelet: str) -> tuple[Tensor, Tensor]:
    """The teacher's features with every detail band under its mean mask, and the prompts' redundancy.

    The gradient goes to the tokens alone. Features beyond a half-precision type are set to its ends.

    Shape:
        ``(B, C_T, *spatial)`` with an axis of more than one voxel and ``(levels, details, n, C_T)`` to the features'
        shape and a scalar.
    """
    kept, products = _Filtered.apply(teacher, tokens, wavelet)
    return kept, _overlap(products)


def _levels(spatial: Sequence[int], tokens: Tensor) -> Iterator[tuple[int, bool]]:
    """Positions of the tokens of all levels that have details, finest first, and whether a level is the last."""
    depth = min(len(tokens), (max(spatial) - 1).bit_length())
    for level in range(depth):
        yield len(tokens) - 1 - level, level == depth - 1


def _masks(bands: StackedBands, tokens: Tensor) -> Tensor:
    """Masks of all details, ``(details, n, C)`` to ``(details * parts * B, n, voxels)``."""
    repeats = bands.data.shape[1] * bands.data.shape[2]
    each = tokens.to(bands.data.dtype)[:, None].expand(-1, repeats, -1, -1).flatten(0, 1)
    return torch.bmm(each, bands.details).sigmoid_()


def _back(levels: Sequence[StackedBands], out: Tensor) -> Tensor:
    """Transform all levels back, finest first in the list."""
    for finer, coarser in zip(reversed(levels[:-1]), reversed(levels[1:]), strict=True):
        coarser.back(finer.approximation)
    return levels[0].back(out)


class _PromptedCost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, tokens: Tensor, wavelet: str, square: float
    ) -> Tensor:
        to_student, to_weight = ctx.needs_input_grad[:2]
        result = torch.empty(student.shape, dtype=weight.dtype, device=student.device) if to_student else None
        ctx.type, maps, levels = student.dtype, teacher.shape[0] * teacher.shape[1], []
        norms, products, cost = [], [], weight.new_zeros(())
        least = teacher.numel() * 2.0 ** (-len(tokens) * (teacher.ndim - 2)) / 2  # details of any level
        ctx.unit = 2 * square if 2e6 * square * least >= 1 else 1.0
        for number, last in _levels(teacher.shape[2:], tokens):
            ours, taught = (StackedBands(one, wavelet, weight.dtype) for one in (student, teacher))
            levels.append(ours)
            absolute = 1 / (maps * (teacher.shape[2:].numel() - taught.coarse.numel()))
            mask = _masks(taught, tokens[number]).mean(1, keepdim=True)
            band, residual = (ours.details, taught.details)
            if last:  # the approximation without a mask
                band, residual = (stack.data.flatten(0, 2) for stack in (ours, taught))
                mask = F.pad(mask, (0, 0, 0, 0, len(band) - len(mask), 0))
            student, teacher = ours.approximation, taught.approximation
            residual.baddbmm_(weight.expand(len(band), -1, -1), band, beta=-1)
            if square:  # a sum of squares may be infinite
                norms.append(torch.linalg.vector_norm(residual, dim=-1).flatten())
            cost += absolute * (mask * torch.linalg.vector_norm(residual, 1, dim=1, keepdim=True)).sum()
            if not (to_student or to_weight):
                continue
            sign = residual.sign()
            if ctx.unit == 1:
                residual.mul_(2 * square)
            residual.addcmul_(sign, mask, value=absolute / ctx.unit)
            if to_weight:
                products.append(torch.bmm(residual, band.transpose(1, 2)))
            if to_student:
                torch.bmm(weight.t().expand(len(band), -1, -1), residual, out=band)
        if norms:
            cost += square * torch.cat(norms).square().sum()
        by_student = None if result is None else _back(levels, result)
        ctx.save_for_backward(by_student, torch.cat(products).sum(0) if to_weight else None)
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_student, by_weight = ctx.saved_tensors
        gradient = ctx.unit * gradient
        return (
            None if by_student is None else (gradient * by_student).to(ctx.type),
            None if by_weight is None else gradient * by_weight,
            None,
            None,
            None,
            None,
        )


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher: Tensor, tokens: Tensor, wavelet: str) -> tuple[Tensor, Tensor]:
        dtype, rest, levels, products = single_precision(teacher), teacher, [], []
        for number, _ in _levels(teacher.shape[2:], tokens):
            bands = StackedBands(rest, wavelet, dtype)
            masks, places = _masks(bands, tokens[number]), bands.places()
            bands.details.mul_(masks.mean(1, keepdim=True))
            products.append(_products(bands, masks if places is None else masks.mul_(places)))
            levels.append(bands)
            rest = bands.approximation
        kept = _back(levels, torch.empty_like(teacher, memory_format=torch.contiguous_format))
        if dtype != teacher.dtype:  # masks may lift a feature near the end of a half-precision type beyond it
            kept.clamp_(torch.finfo(teacher.dtype).min, torch.finfo(teacher.dtype).max)
        ctx.wavelet, ctx.counts = wavelet, [len(one) for one in products]
        ctx.save_for_backward(teacher, tokens, kept)
        return kept, torch.cat(products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_kept: Tensor, of_products: Tensor) -> tuple[Tensor | None, ...]:
        teacher, tokens, kept = ctx.saved_tensors
        dtype, rest, result = single_precision(teacher), teacher, torch.zeros_like(tokens)
        if dtype != teacher.dtype:
            of_kept = of_kept.masked_fill(kept.abs() >= torch.finfo(teacher.dtype).max, 0)
        with torch.autocast(teacher.device.type, enabled=False):
            by_level = iter(torch.split(of_products + of_products.transpose(1, 2), ctx.counts))
            for number, _ in _levels(teacher.shape[2:], tokens):
                bands, slopes = (StackedBands(one, ctx.wavelet, dtype) for one in (rest, of_kept))
                rest, of_kept = bands.approximation, slopes.approximation
                masks, places = _masks(bands, tokens[number]), bands.places()
                by_mask = slopes.details.mul_(bands.details).sum(1, keepdim=True) / masks.shape[1]
                counted = masks if places is None else masks * places
                by_masks = torch.baddbmm(by_mask, _to_parts(bands, next(by_level)), counted)
                by_masks = by_masks if places is None else by_masks.mul_(places)
                by_tokens = torch.bmm(by_masks.mul_(masks).mul_(1 - masks), bands.details.transpose(1, 2))
                result[number] = by_tokens.view(len(tokens[number]), -1, *tokens.shape[2:]).sum(1)
        return None, result, None


def _filled(bands: StackedBands) -> list[bool]:
    """Which details have a voxel."""
    return [0 not in size for size in bands.sizes()]


def _products(bands: StackedBands, masks: Tensor) -> Tensor:
    """Sums over all voxels of products of masks, ``(bands with voxels * B, n, n)``."""
    every = torch.bmm(masks, masks.transpose(1, 2))
    every = every.view(-1, *bands.data.shape[1:3], *every.shape[1:]).sum(1)
    if not all(_filled(bands)):
        every = every[[number for number, filled in enumerate(_filled(bands)) if filled]]
    return every.flatten(0, 1)


def _to_parts(bands: StackedBands, by_products: Tensor) -> Tensor:
    """The gradient of :func:`_products` for each part, ``(details * parts * B, n, n)``."""
    parts, batch = bands.data.shape[1:3]
    each = by_products.view(-1, 1, batch, *by_products.shape[1:])
    if not all(_filled(bands)):
        every = each.new_zeros(len(bands.data) - 1, *each.shape[1:])
        every[[number for number, filled in enumerate(_filled(bands)) if filled]] = each
        each = every
    return each.expand(-1, parts, -1, -1, -1).flatten(0, 2)


def _overlap(products: Tensor) -> Tensor:
    """Mean Dice overlap of different masks, of the sums of their products ``(N, tokens, tokens)``."""
    tokens = products.shape[1]
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2 * products / (squares[:, None] + squares[:, :, None]).clamp(min=1e-12)
    different = 1 - torch.eye(tokens, dtype=dice.dtype, device=dice.device)
    return (dice * different).sum((1, 2)).mean() / max(tokens * (tokens - 1), 1)
