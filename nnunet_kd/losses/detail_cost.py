"""Squared differences of selected wavelet bands, with the gradient taken at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.wavelet_details import Selection, WaveletDetails


def detail_cost(student: Tensor, weight: Tensor, teacher: Tensor, selection: Selection) -> Tensor:
    """Squared norm of ``W bands(s) - bands(t)`` over the selected bands of all levels, times the factors' squares.

    The gradient, to student and weight, is taken at once, so that only tensors of their sizes are kept for it.

    Shape:
        s ``(B, C_S, *spatial)``, W ``(C_T, C_S)``, t ``(B, C_T, *spatial)`` to a scalar.
    """
    cost: Tensor = _DetailCost.apply(student, weight, teacher, selection)
    return cost


def detail_energy(features: Tensor, selection: Selection) -> Tensor:
    """Squared norm of the selected bands of ``(B, C, *spatial)``, times the factors' squares."""
    cost: Tensor = _DetailEnergy.apply(features, selection)
    return cost


class _DetailCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, selection: Selection) -> Tensor:
        to_student, to_weight = ctx.needs_input_grad[:2]
        ours, taught = WaveletDetails(student, selection), WaveletDetails(teacher, selection)
        norms, products = [], []
        for band, residual in zip(ours.components, taught.components, strict=True):
            count = len(band)
            residual.baddbmm_(weight.expand(count, -1, -1), band, beta=-1)
            norms.append(_row_norms(residual))
            if to_weight:
                products.append(torch.bmm(residual, band.transpose(1, 2)))
            if to_student:
                torch.bmm(weight.t().expand(count, -1, -1), residual, out=band)
        by_weight = torch.cat(products).sum(0) if products else torch.zeros_like(weight) if to_weight else None
        ctx.save_for_backward(ours.back() if to_student else None, by_weight)
        return _energy(norms, student)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = 2 * gradient
        return *(None if saved is None else gradient * saved for saved in ctx.saved_tensors), None, None


class _DetailEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, selection: Selection) -> Tensor:
        details = WaveletDetails(features, selection)
        norms = [_row_norms(component) for component in details.components]
        ctx.save_for_backward(details.back() if ctx.needs_input_grad[0] else None)
        return _energy(norms, features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return None if saved is None else 2 * gradient * saved, None


def _row_norms(component: Tensor) -> Tensor:
    """Row by row, because a single float32 sum over a feature map of usual size is wrong in its fourth digit."""
    norms: Tensor = torch.linalg.vector_norm(component, dim=-1)
    return norms.flatten()


def _energy(norms: list[Tensor], features: Tensor) -> Tensor:
    return torch.cat(norms).square().sum() if norms else features.new_zeros(())
