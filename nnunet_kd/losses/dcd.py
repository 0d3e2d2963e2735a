"""Detail Consistent Distillation of one encoder stage.

Fan et al., "Detail Consistent Stage-Wise Distillation for Efficient 3D MRI Segmentation", eq. 6-8.
Authors' code: https://github.com/ClinicaAlpha/DCD-3D-MedSeg
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_kd.losses.dcd_published import published_details
from nnunet_kd.losses.detail_cost import detail_cost, detail_energy
from nnunet_kd.losses.features import (
    MOST_LEVELS,
    check_count,
    check_features,
    check_wavelet,
    energy,
    in_single_precision,
    is_pointwise,
    pointwise_convolution,
    projected,
)
from nnunet_kd.losses.residual import residual_cost
from nnunet_kd.losses.wavelet_details import Selection
from nnunet_kd.wavelets import Bands, select_bands, selected_components

LevelWeighting = Literal["level_mean", "energy"]
Transform = Literal["exact", "published"]


class DCDLoss(nn.Module):
    r"""Mean squared difference of the details of student and teacher features (eq. 7).

    .. math:: L = \mathrm{mean}\left[(P_D\, \phi(F_S) - P_D\, F_T)^2\right]

    :math:`P_D` keeps the selected bands of an orthonormal wavelet transform and is an exact orthogonal projection,
    so the norm is taken in the wavelet basis (Parseval) and no inverse transform is computed. :math:`\phi`, a
    1x1(x1) convolution, commutes with the transform: it is applied to the bands, and the transform of the student
    runs at the student's width.

    Where paper and the authors' code differ: the paper reconstructs once from all levels (``"energy"``), the code
    averages the mean squared error of each level at that level's own resolution (``"level_mean"``), which is the
    default here. Levels that have nothing to select (axes of length one) are left out of the average. Their transform
    does not invert itself; this one does, so ``reconstruct=False`` differs from ``True`` only in what the sum of
    squares is divided by.

    ``transform="published"`` computes what their code does instead (:mod:`nnunet_kd.losses.dcd_published`), with its
    phi: a convolution with bias where the widths differ, and none where they agree. A weight holds for one transform:
    with db4 the published one shrinks the loss several times, more in the coarse stages than in the fine ones.

    Args:
        wavelet: PyWavelets name of an orthogonal wavelet.
        levels: Number of decomposition levels.
        bands: ``"directional"`` (the paper's D), ``"lll"``, ``"hhh"``, ``"detail"`` (all but LLL) or ``"all"``:
            the rows of Table 4.
        reconstruct: ``True``: mean over the voxels of the reconstruction (eq. 7). ``False``: mean over the
            selected coefficients (Table 4, "w/o IDWT").
        level_weighting: ``"level_mean"`` or ``"energy"``.
        transform: ``"exact"`` or ``"published"``; the latter has ``reconstruct=True`` and ``"level_mean"`` alone.

    Raises:
        ValueError: For an option that is none of these.
    """

    def __init__(
        self,
        wavelet: str = "db4",
        levels: int = 3,
        bands: Bands = "directional",
        reconstruct: bool = True,
        level_weighting: LevelWeighting = "level_mean",
        transform: Transform = "exact",
    ) -> None:
        super().__init__()
        check_count("levels", levels, MOST_LEVELS)
        if not isinstance(reconstruct, bool):
            raise ValueError(f"reconstruct must be true or false, got {reconstruct!r}")
        if level_weighting not in ("level_mean", "energy"):
            raise ValueError(f"level_weighting must be 'level_mean' or 'energy', got {level_weighting!r}")
        if transform not in ("exact", "published"):
            raise ValueError(f"transform must be 'exact' or 'published', got {transform!r}")
        if transform == "published" and not (reconstruct and level_weighting == "level_mean"):
            raise ValueError(
                "transform 'published' reconstructs each level alone: remove reconstruct and level_weighting, or use "
                "transform 'exact'"
            )
        select_bands(bands, 3)
        check_wavelet(wavelet)
        self.wavelet = wavelet
        self.levels = levels
        self.bands: Bands = bands
        self.reconstruct = reconstruct
        self.level_weighting: LevelWeighting = level_weighting
        self.transform: Transform = transform

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> nn.Module:
        """The phi of one stage: a 1x1(x1) convolution from student to teacher width.

        It has no bias unless the selection holds the approximation: a constant has no details, so a bias would
        change nothing and receive no gradient. Of the published transform a constant has details, and phi a bias.
        """
        if self.transform == "published":
            if student_channels == teacher_channels:
                return nn.Identity()
            return pointwise_convolution(student_channels, teacher_channels, dim, bias=True)
        return pointwise_convolution(student_channels, teacher_channels, dim, bias=self.bands in ("lll", "all"))

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
            if self.transform == "published":
                return self._published(student, teacher, projection)
            selection, scale = self._selection(teacher.shape)
            if not scale:  # no axis is long enough for these bands
                return (0 * student).sum()
            if is_pointwise(projection) and projection.bias is None and 2 * student.shape[1] <= teacher.shape[1]:
                weight = projection.weight.flatten(1).to(student.dtype)
                return scale * detail_cost(student, weight, teacher, selection)
            return scale * detail_energy(projected(student, teacher, projection) - teacher, selection)

    def _published(self, student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
        """Mean over the levels of the mean squared error of what the published code reconstructs."""
        if is_pointwise(projection) and 2 * student.shape[1] <= teacher.shape[1]:
            weight = projection.weight.flatten(1).to(student.dtype)
            if projection.bias is not None:  # a bias is the weight of a channel of ones
                weight = torch.cat([weight, projection.bias.to(student.dtype)[:, None]], dim=1)
                student = torch.cat([student, torch.ones_like(student[:, :1])], dim=1)
            pairs = zip(self._published_details(student), self._published_details(teacher), strict=True)
            means = [residual_cost(s, weight, t) / t.numel() for s, t in pairs if t.numel()]
        else:
            difference = projected(student, teacher, projection) - teacher
            means = [energy(part) / part.numel() for part in self._published_details(difference) if part.numel()]
        return torch.stack(means).mean() if means else (0 * student).sum()

    def _published_details(self, features: Tensor) -> list[Tensor]:
        return published_details(features, self.wavelet, self.levels, self.bands)

    def _selection(self, shape: torch.Size) -> tuple[Selection, float]:
        """The bands, and what their squared norm is multiplied with; 0 where no level selects anything.

        The weight of a level is that of the finest times the squares of the factors up to its own.
        """
        each_level = self.level_weighting == "level_mean"
        voxels, coefficients = _sizes(shape[2:], self.wavelet, self.levels, self.bands, each_level)
        sizes = [float(max(size, 1)) for size in (voxels if self.reconstruct else coefficients)]
        used = sum(count > 0 for count in coefficients)
        if not each_level:
            used, sizes = (
                min(used, 1),
                [sizes[0] if self.reconstruct else float(max(sum(coefficients), 1))] * self.levels,
            )
        factors = (1.0, *(math.sqrt(finer / coarser) for finer, coarser in itertools.pairwise(sizes)))
        keep = select_bands(self.bands, len(shape) - 2)
        selection = Selection(self.wavelet, keep, each_level, factors)
        return selection, 1 / (shape[0] * shape[1] * sizes[0] * used) if used else 0.0

    def extra_repr(self) -> str:
        published = "" if self.transform == "exact" else f", transform={self.transform!r}"
        return (
            f"wavelet={self.wavelet!r}, levels={self.levels}, bands={self.bands!r}, "
            f"reconstruct={self.reconstruct}, level_weighting={self.level_weighting!r}{published}"
        )


@lru_cache(maxsize=256)
def _sizes(
    spatial: torch.Size, wavelet: str, levels: int, bands: Bands, each_level: bool
) -> tuple[list[int], list[int]]:
    """Per channel: the voxels each level starts from, and the coefficients it selects."""
    selected = selected_components(torch.zeros(1, 1, *spatial), wavelet, levels, bands, each_level)
    voxels = []
    for _ in range(levels):
        voxels.append(spatial.numel())
        spatial = torch.Size((length + 1) // 2 for length in spatial)
    return voxels, [sum(part.numel() for part in level) for level in selected]
