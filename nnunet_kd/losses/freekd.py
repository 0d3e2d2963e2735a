"""Frequency distillation through semantic frequency prompts.

Zhang et al., "FreeKD: Knowledge Distillation via Semantic Frequency Prompt", CVPR 2024, sections 3.2 and 3.3.
Authors' code: https://github.com/Gumpest/FreeKD
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_kd.losses.features import (
    MOST_LEVELS,
    check_count,
    check_features,
    check_number,
    check_wavelet,
    is_pointwise,
    pointwise_convolution,
    projected,
    single_precision,
)
from nnunet_kd.losses.prompted_cost import filtered_by_prompts, prompted_cost
from nnunet_kd.losses.residual import residual_cost

MOST_TOKENS = 1000


class FrequencyPrompts(nn.Module):
    r"""Learned tokens that say where a frequency band of the teacher matters.

    The mask of token t in a band is :math:`M_t(x) = \mathrm{sigmoid}(\sum_c P_{tc} R_c(x))`, R being the band of the
    teacher's features. Every detail band of every level has tokens of its own.

    Args:
        channels: Width of the teacher's stage.
        levels: Levels of the transform.
        bands: Detail bands a level.
        tokens: Tokens a band.
    """

    def __init__(self, channels: int, levels: int, bands: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.randn(levels, bands, tokens, channels))


class FreeKDAdapter(nn.Module):
    """phi and the prompts of one stage."""

    def __init__(self, phi: nn.Module, prompts: FrequencyPrompts) -> None:
        super().__init__()
        self.phi = phi
        self.prompts = prompts


class FreeKDLoss(nn.Module):
    r"""L1 distance of the detail bands, weighted by prompts' masks, plus mean squared error of the features.

    .. math:: L = \sum_l \mathrm{mean}_b\left[\bar M_{lb}\, |R_{lb}(\phi(F_S)) - R_{lb}(F_T)|\right]
        + \lambda\, \mathrm{mean}\left[(\phi(F_S) - F_T)^2\right]

    The mean is over all detail coefficients of level l, as in the authors' code. :math:`\bar M` is the mean over the
    tokens of :class:`FrequencyPrompts`, taken from the teacher alone. The transform is orthonormal and phi a 1x1(x1)
    convolution without bias, so the transform of the student runs at the student's width and the squared error is
    summed over the bands (Parseval).

    The prompts are tuned first, on the frozen teacher (:meth:`tuning`): from what they leave of its features it still
    has to segment, and their redundancy keeps the tokens apart. Where paper and the authors' code differ:
    both mask the approximation as well while tuning; only the masks of the details are used later, and only those
    are made here. They sum over tokens, here it is the mean, so that features keep their size. In the code a level has
    one set of tokens, whose mask is that of the sum of its detail bands.

    Args:
        levels: Levels of the transform.
        tokens: Tokens a band.
        wavelet: PyWavelets name of an orthogonal wavelet.
        feature_weight: lambda.

    Raises:
        ValueError: For an option that is none of these.
    """

    def __init__(self, levels: int = 3, tokens: int = 6, wavelet: str = "haar", feature_weight: float = 5.0) -> None:
        super().__init__()
        check_count("levels", levels, MOST_LEVELS)
        check_count("tokens", tokens, MOST_TOKENS)
        check_number("feature_weight", feature_weight, positive=False)
        check_wavelet(wavelet)
        self.levels = levels
        self.tokens = tokens
        self.wavelet = wavelet
        self.feature_weight = float(feature_weight)

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> FreeKDAdapter:
        """phi, a 1x1(x1) convolution, and the prompts of one stage."""
        phi = pointwise_convolution(student_channels, teacher_channels, dim, bias=False)
        return FreeKDAdapter(phi, FrequencyPrompts(teacher_channels, self.levels, 2**dim - 1, self.tokens))

    def forward(self, student: Tensor, teacher: Tensor, projection: FreeKDAdapter) -> Tensor:
        """Loss of one stage. Neither the teacher's features nor the prompts receive gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: From :meth:`projection`.

        Shape:
            ``(B, C_S, *spatial)`` and ``(B, C_T, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For features that do not fit each other.
        """
        phi, prompts = projection.phi, projection.prompts
        check_features(student, teacher, phi)
        self._check_prompts(teacher, prompts)
        teacher = teacher.detach()
        dtype = single_precision(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            if is_pointwise(phi) and phi.bias is None:
                weight = phi.weight.flatten(1).to(dtype)
            else:
                student = projected(student.to(dtype), teacher, phi)
                weight = torch.eye(teacher.shape[1], dtype=dtype, device=teacher.device)
            square = self.feature_weight / teacher.numel()
            if max(teacher.shape[2:]) == 1:  # a single voxel has no details
                return residual_cost(student.to(dtype), weight, teacher.to(dtype), square)
            return prompted_cost(student, weight, teacher, prompts.tokens, self.wavelet, square)

    def tuning(self, teacher: Tensor, projection: FreeKDAdapter) -> tuple[Tensor, Tensor]:
        """What the prompts are tuned with; gradient to them alone.

        Returns:
            The teacher's features with every detail band multiplied by its mean mask, in their own floating type, and
            the redundancy: the mean Dice overlap of different tokens' masks, averaged over the bands, from 0 to 1.

        Shape:
            ``(B, C_T, *spatial)`` to the same and a scalar.

        Raises:
            ValueError: For prompts of other features.
        """
        self._check_prompts(teacher, projection.prompts)
        tokens = projection.prompts.tokens
        if max(teacher.shape[2:]) == 1:
            return teacher.detach(), 0 * tokens.sum()
        with torch.autocast(teacher.device.type, enabled=False):
            return filtered_by_prompts(teacher.detach(), tokens, self.wavelet)

    def _check_prompts(self, teacher: Tensor, prompts: FrequencyPrompts) -> None:
        expected = (self.levels, 2 ** (teacher.ndim - 2) - 1, self.tokens, *teacher.shape[1:2])
        if teacher.ndim not in (4, 5) or prompts.tokens.shape != expected:
            raise ValueError(
                f"prompts {tuple(prompts.tokens.shape)} are not those of {self.levels} levels, {self.tokens} tokens "
                f"and teacher features {tuple(teacher.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"levels={self.levels}, tokens={self.tokens}, wavelet={self.wavelet!r}, "
            f"feature_weight={self.feature_weight:g}"
        )
