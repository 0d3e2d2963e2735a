"""Hints: the student's features predict the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_kd.losses.features import check_features, in_single_precision, pointwise_convolution, projected


class FitNetsLoss(nn.Module):
    r"""Mean squared error of the regressed student features, :math:`\mathrm{mean}[(\phi(F_S) - F_T)^2]`."""

    def __init__(self) -> None:  # torch's own takes any keyword
        super().__init__()

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> nn.Module:
        """The learnable regressor phi of one stage: a 1x1(x1) convolution with bias."""
        return pointwise_convolution(student_channels, teacher_channels, dim, bias=True)

    def forward(self, student: Tensor, teacher: Tensor, projection: nn.Module | None = None) -> Tensor:
        """Loss of one stage. The teacher's features receive no gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: phi; may be left out where the widths agree.

        Shape:
            ``(B, C_S, *spatial)`` and ``(B, C_T, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For features that do not fit each other.
        """
        check_features(student, teacher, projection)
        with in_single_precision(student, teacher.detach()) as (student, teacher):
            return (projected(student, teacher, projection) - teacher).square().mean()
