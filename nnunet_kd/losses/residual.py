"""Costs of the residual between projected student and teacher that keep nothing of the teacher's width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.features import energy


def residual_cost(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    square: float = 1.0,
    absolute: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """``sum(square * r^2 + absolute * mask * |r|)`` of ``r = W s - t``; without a mask the squares alone.

    The gradient, to student and weight, is taken at once, so that only tensors of their sizes are kept for it.

    Shape:
        s ``(B, C_S, *spatial)``, W ``(C_T, C_S)``, t ``(B, C_T, *spatial)``, mask ``(B, 1, N)`` to a scalar.
    """
    cost: Tensor = _ResidualCost.apply(student.flatten(2), weight, teacher.flatten(2), square, absolute, mask)
    return cost


class _ResidualCost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, square: float, absolute: float, mask: Tensor | None
    ) -> Tensor:
        residual = torch.baddbmm(teacher, weight.expand(student.shape[0], -1, -1), student, beta=-1)
        cost = square * energy(residual) if square else residual.new_zeros(())  # a sum of squares may be infinite
        slope, ctx.factor = residual, 2 * square
        if mask is not None:
            cost = cost + absolute * (mask * residual.abs().sum(1, keepdim=True)).sum()
            slope, ctx.factor = (2 * square * residual).addcmul_(residual.sign_(), mask, value=absolute), 1.0
        by_student = weight.t() @ slope if ctx.needs_input_grad[0] else None
        by_weight = (slope @ student.transpose(1, 2)).sum(0) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(by_student, by_weight)
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_student, by_weight = ctx.saved_tensors
        gradient = ctx.factor * gradient
        return (
            None if by_student is None else gradient * by_student,
            None if by_weight is None else gradient * by_weight,
            None,
            None,
            None,
            None,
        )
