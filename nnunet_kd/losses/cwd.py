"""Channel-wise distillation.

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, eq. 2-4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.features import check_logits, check_temperature, in_single_precision


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
        with in_single_precision(student, teacher.detach()) as (student, teacher):
            student, teacher = student.flatten(2) / self.temperature, teacher.flatten(2) / self.temperature
            if valid is not None:  # so low that the probability is exactly 0; finite, so that 0 * log stays 0
                ignored, lowest = ~valid.flatten(2), torch.finfo(student.dtype).min / 4
                student, teacher = student.masked_fill(ignored, lowest), teacher.masked_fill(ignored, lowest)
            log_student, log_teacher = F.log_softmax(student, 2), F.log_softmax(teacher, 2)
            divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(2)
            return self.temperature**2 * divergence.mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"
