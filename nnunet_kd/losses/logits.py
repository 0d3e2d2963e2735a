"""Distillation of the class probabilities of every voxel.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2, for the voxels of a segmentation.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.chunks import is_large, sum_over_chunks
from nnunet_kd.losses.features import check_logits, check_temperature, in_single_precision


class LogitsKDLoss(nn.Module):
    r"""Kullback-Leibler divergence of the student's class probabilities from the teacher's, softened by T.

    .. math:: L = T^2\, \mathrm{mean}_x \sum_c p^T_c(x) \log \frac{p^T_c(x)}{p^S_c(x)},
        \qquad p = \mathrm{softmax}(z / T)

    :math:`T^2` keeps the size of the gradient independent of the temperature (section 2.1); SAM-DRA-UNet, eq. 15, does
    without. Regions, which may overlap, are one Bernoulli distribution each, ``p = sigmoid(z / T)``; their divergences
    are summed.

    Args:
        temperature: T.
        rescale: Whether the factor T^2 is there.

    Raises:
        ValueError: For a temperature that is no number from 0.001 to 1000.
    """

    def __init__(self, temperature: float = 3.0, rescale: bool = True) -> None:
        super().__init__()
        check_temperature(temperature)
        if not isinstance(rescale, bool):
            raise ValueError(f"rescale must be true or false, got {rescale!r}")
        self.temperature = float(temperature)
        self.rescale = rescale

    def forward(self, student: Tensor, teacher: Tensor, regions: bool = False, valid: Tensor | None = None) -> Tensor:
        """Loss of one resolution. The teacher's logits receive no gradient.

        Args:
            student: Logits of the student, any floating type; computed in float32 at least.
            teacher: Logits of the teacher on the same grid.
            regions: The channels are regions, not classes of one softmax.
            valid: Voxels that count, boolean; all of them if left out. Without any, the loss is 0.

        Shape:
            ``(B, classes, *spatial)`` twice and ``(B, 1, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        check_logits(student, teacher, valid)
        teacher = teacher.detach()
        maps = (student, teacher) if valid is None else (student, teacher, valid)
        if is_large(student):
            divergence = sum_over_chunks(partial(self._summed, regions), maps)
        else:
            divergence = self._summed(regions, *maps)
        voxels = student[:, 0].numel() if valid is None else valid.sum().clamp(min=1)
        factor = self.temperature**2 if self.rescale else 1.0
        return factor * divergence / voxels

    def _summed(self, regions: bool, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Sum the divergence over the voxels that count."""
        with in_single_precision(student, teacher) as (student, teacher):
            student, teacher = student / self.temperature, teacher / self.temperature
            if regions:
                divergence = _divergence(student, teacher, F.logsigmoid) + _divergence(-student, -teacher, F.logsigmoid)
            else:
                divergence = _divergence(student, teacher, lambda logits: F.log_softmax(logits, 1))
            return (divergence if valid is None else divergence * valid[:, 0]).sum()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}" + ("" if self.rescale else ", rescale=False")


def _divergence(student: Tensor, teacher: Tensor, log_probabilities: object) -> Tensor:
    """``sum_c p_T (log p_T - log p_S)``, ``(B, classes, *spatial)`` to ``(B, *spatial)``."""
    log_teacher, log_student = log_probabilities(teacher), log_probabilities(student)  # type: ignore[operator]
    divergence: Tensor = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return divergence
