"""Intra-class feature variation distillation.

Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020, eq. 1-3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.features import check_classes, check_number, check_pair, in_single_precision


class IFVDLoss(nn.Module):
    r"""How far is each voxel from the centre of its own class? Student and teacher should agree.

    .. math:: L = \mathrm{mean}_x \left(M_S(x) - M_T(x)\right)^2, \qquad
        M(x) = \cos\left(F(x),\, \mathrm{mean}_{y:\, c(y) = c(x)} F(y)\right)

    The centres are those of one image, and the student's carry gradient too. Maps have one channel: widths need
    not agree and there is no adapter. Scaling the features of a whole image changes nothing.

    Args:
        eps: Least norm that is divided by.

    Raises:
        ValueError: For ``eps`` that is no number above 0.
    """

    needs_classes = True
    has_projection = False

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        check_number("eps", eps)
        self.eps = float(eps)

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> nn.Module:
        """No adapter."""
        return nn.Identity()

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        projection: nn.Module | None = None,
        *,
        classes: Tensor,
        num_classes: int | None = None,
    ) -> Tensor:
        """Loss of one stage. The teacher's features receive no gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: Applied to the student's features first, where there is one.
            classes: Class of every voxel from the annotation, whole numbers from 0; -1: does not count. A finer
                annotation than the features is reduced as in the authors' code, by PyTorch's ``nearest``: to the first
                voxel of every cell, where nnU-Net's deep supervision takes the central one. Without any voxel, the loss
                is 0.
            num_classes: Classes are below this; looked up, which waits for the device, if left out.

        Shape:
            ``(B, C_S, *spatial)``, ``(B, C_T, *spatial)``, ``(B, *annotated)``, two or three spatial axes, to a
            scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        check_pair(student, teacher)
        check_classes(classes, student)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
        with in_single_precision(student, teacher.detach()) as (student, teacher):
            if projection is not None:
                student = projection(student)
            members = _members(classes, num_classes, student.shape[2:], student.dtype)
            difference = self.similarity(student, members) - self.similarity(teacher, members)
            return difference.square().sum() / members.sum().clamp(min=1)

    def similarity(self, features: Tensor, members: Tensor) -> Tensor:
        """Cosine of every voxel's features with the centre of its class; 0 where a voxel has none.

        Shape:
            ``(B, C, *spatial)`` and ``(B, classes, voxels)`` to ``(B, voxels)``.
        """
        features = features.flatten(2)
        sums = members @ features.transpose(1, 2)  # the direction of the sum is that of the mean
        means = sums / members.sum(2, keepdim=True).clamp(min=1)
        centres = self._divided(means, torch.linalg.vector_norm(means, dim=2, keepdim=True))
        cosines = ((centres @ features) * members).sum(1)
        return self._divided(cosines, torch.linalg.vector_norm(features, dim=1))

    def _divided(self, tensor: Tensor, norms: Tensor) -> Tensor:
        """By the norm of a vector, where that is 0 nothing, without a gradient: it would be that of division by eps."""
        return (tensor / norms.clamp(min=self.eps)).masked_fill(norms == 0, 0)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


def _members(classes: Tensor, num_classes: int | None, grid: torch.Size, dtype: torch.dtype) -> Tensor:
    """Membership of every voxel of ``grid`` in the classes, ``(B, *annotated)`` to ``(B, classes, voxels)``."""
    if num_classes is None:
        num_classes = int(classes.max().clamp(min=0)) + 1
    if classes.shape[1:] != grid:
        resized = F.interpolate(classes[:, None].float(), tuple(grid), mode="nearest")[:, 0]
        classes = resized.to(classes.dtype)
    numbers = torch.arange(num_classes, device=classes.device)
    return (classes.flatten(1)[:, None] == numbers[:, None]).to(dtype)
