"""Channel-wise distillation.

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, eq. 2-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.chunks import in_chunks, is_large
from nnunet_kd.losses.features import check_logits, check_temperature, in_single_precision, single_precision


class CWDLoss(nn.Module):
    r"""Where does each channel look? Divergence of the student's spatial distribution from the teacher's.

    .. math:: L = \frac{T^2}{B C} \sum_{b, c} \sum_x p^T_{bc}(x) \log \frac{p^T_{bc}(x)}{p^S_{bc}(x)}, \qquad
        p_{bc} = \mathrm{softmax}_x(z_{bc} / T)

    A constant added to a channel changes nothing. Whether the channels are classes or regions makes no difference.

    Args:
        temperature: T; authors' code: 4 on logits (weight 3), in the paper also 1 (weight 5).

    Raises:
        ValueError: For a temperature that is no number from 0.001 to 1000.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = float(temperature)

    def forward(self, student: Tensor, teacher: Tensor, regions: bool = False, valid: Tensor | None = None) -> Tensor:
        """Loss of one pair of maps. The teacher's receive no gradient.

        Args:
            student: Maps of the student, any floating type; computed in float32 at least.
            teacher: As many maps of the teacher on the same grid.
            regions: Not used; every loss on logits is told.
            valid: Voxels that count, boolean; the distributions are over these. All of them if left out.

        Shape:
            ``(B, C, *spatial)`` twice and ``(B, 1, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        check_logits(student, teacher, valid)
        if is_large(student):
            with torch.autocast(student.device.type, enabled=False):
                divergence: Tensor = _DivergenceOfLarge.apply(student, teacher.detach(), valid, self.temperature)
                return self.temperature**2 * divergence / (student.shape[0] * student.shape[1])
        with in_single_precision(student, teacher.detach()) as (student, teacher):
            student, teacher = (_softened(maps, valid, self.temperature) for maps in (student, teacher))
            log_student, log_teacher = F.log_softmax(student, 2), F.log_softmax(teacher, 2)
            divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(2)
            return self.temperature**2 * divergence.mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"


def _softened(maps: Tensor, valid: Tensor | None, temperature: float) -> Tensor:
    """Divide maps by the temperature, and make voxels that do not count improbable; ``(B, C, voxels)``."""
    softened = maps.flatten(2) / temperature
    if valid is None:
        return softened
    # so low that the probability is exactly 0; finite, so that 0 * log stays 0
    return softened.masked_fill(~valid.flatten(2), torch.finfo(maps.dtype).min / 4)


class _DivergenceOfLarge(torch.autograd.Function):
    """The divergence summed over images and channels, chunk by chunk; only the maps are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float) -> Tensor:
        def log_sum(maps: Tensor) -> Tensor:
            parts = [one.logsumexp(2) for (one,) in _softened_chunks([maps], valid, temperature, dtype)]
            return torch.stack(parts).logsumexp(0)[:, :, None]

        dtype = single_precision(student, teacher)
        ctx.temperature = temperature
        ctx.save_for_backward(student, teacher, valid, *(sums := (log_sum(student), log_sum(teacher))))
        parts = []
        for ours, theirs in _softened_chunks([student, teacher], valid, temperature, dtype):
            log_student, log_teacher = ours - sums[0], theirs - sums[1]
            parts.append((log_teacher.exp() * (log_teacher - log_student)).sum())
        return torch.stack(parts).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, valid, of_student, of_teacher = ctx.saved_tensors
        dtype, found = of_student.dtype, torch.empty_like(student)
        softened = _softened_chunks([student, teacher], valid, ctx.temperature, dtype)
        for (place,), (ours, theirs) in zip(in_chunks([found]), softened, strict=True):
            difference = (ours - of_student).exp() - (theirs - of_teacher).exp()
            place.copy_((gradient / ctx.temperature * difference).view(place.shape))
        return found, None, None, None


def _softened_chunks(
    maps: list[Tensor], valid: Tensor | None, temperature: float, dtype: torch.dtype
) -> Iterator[list[Tensor]]:
    for chunk in in_chunks(maps if valid is None else [*maps, valid]):
        of_chunk = None if valid is None else chunk[-1]
        yield [_softened(one.to(dtype), of_chunk, temperature) for one in chunk[: len(maps)]]
