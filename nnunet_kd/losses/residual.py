"""The squared residual between projected student and teacher; nothing of the teacher's width is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.features import energy


def residual_cost(student: Tensor, weight: Tensor, teacher: Tensor, square: float = 1.0) -> Tensor:
    """``square * sum(r^2)`` of ``r = W s - t``.

    The gradient, to student and weight, is taken at once, so that only tensors of their sizes are kept for it.

    Shape:
        s ``(B, C_S, *spatial)``, W ``(C_T, C_S)``, t ``(B, C_T, *spatial)`` to a scalar.
    """
    cost: Tensor = _ResidualCost.apply(student.flatten(2), weight, teacher.flatten(2), square)
    return cost


class _ResidualCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, square: float) -> Tensor:
        residual = torch.baddbmm(teacher, weight.expand(student.shape[0], -1, -1), student, beta=-1)
        ctx.factor = 2 * square
        by_student = weight.t() @ residual if ctx.needs_input_grad[0] else None
        by_weight = (residual @ student.transpose(1, 2)).sum(0) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(by_student, by_weight)
        return square * energy(residual) if square else residual.new_zeros(())  # a sum of squares may be infinite

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
        )
