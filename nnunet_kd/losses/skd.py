"""Structured knowledge distillation, its pair-wise part.

Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, and "... for Dense Prediction",
TPAMI 2020: pair-wise distillation. The holistic, adversarial part is not here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.chunks import is_large
from nnunet_kd.losses.features import check_count, check_pair, single_precision
from nnunet_kd.losses.relations import directions, divided

POOLINGS = ("max", "average")


class SKDLoss(nn.Module):
    r"""How similar are the parts of an image to each other? Student and teacher should agree.

    .. math:: L = \mathrm{mean}_{b} \frac{1}{N^2} \sum_{i, j} \left(a^S_{ij} - a^T_{ij}\right)^2, \qquad
        a_{ij} = \cos\left(f_i, f_j\right)

    The nodes i are windows of a feature map, each with its pooled features. All pairs of an image are compared. No
    matrix of pairs is made where there are more nodes than channels: with unit features X, ``(C, N)``,

    .. math:: \|A^S - A^T\|^2 = \|X_S X_S^T\|^2 + \|X_T X_T^T\|^2 - 2 \|X_S X_T^T\|^2

    Widths need not agree and there is no adapter.

    Args:
        window: The voxels of a node along an axis. 2 is usual in comparisons (the code of CIRKD and of DPRD).
        nodes: About how many nodes an axis has, instead of ``window``; 2 in the authors' code, of one map.
        pooling: ``"max"`` as in the authors' code, or ``"average"`` as in the paper.
        detach_norms: Whether the gradient takes the norms of the features for constants, as in the authors' code. The
            value is the same.

    Raises:
        ValueError: For options out of range.
    """

    has_projection = False

    def __init__(
        self, window: int = 2, nodes: int | None = None, pooling: str = "max", detach_norms: bool = False
    ) -> None:
        super().__init__()
        check_count("window", window, 1024)
        if nodes is not None:
            check_count("nodes", nodes, 1024)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be 'max' or 'average', got {pooling!r}")
        if not isinstance(detach_norms, bool):
            raise ValueError(f"detach_norms must be true or false, got {detach_norms!r}")
        self.window, self.nodes, self.pooling, self.detach_norms = window, nodes, pooling, detach_norms

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> nn.Module:
        """No adapter."""
        return nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor, projection: nn.Module | None = None) -> Tensor:
        """Loss of one stage. The teacher's features receive no gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: Not used.

        Shape:
            ``(B, C_S, *spatial)`` and ``(B, C_T, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        check_pair(student, teacher)
        dtype = single_precision(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = (self._unit_nodes(maps, dtype) for maps in (student, teacher.detach()))
            nodes = ours.shape[2]
            if nodes <= ours.shape[1] + theirs.shape[1]:
                squares = (ours.mT @ ours - theirs.mT @ theirs).square().sum()
            else:
                own, taught, both = ours @ ours.mT, theirs @ theirs.mT, ours @ theirs.mT
                squares = own.square().sum() + taught.square().sum() - 2 * both.square().sum()
            loss: Tensor = squares / (len(ours) * nodes**2)
            return loss

    def _unit_nodes(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the directions of the nodes' features, ``(B, C, *spatial)`` to ``(B, C, nodes)``."""
        sides = features.shape[2:]
        windows = [min(self.window, side) if self.nodes is None else max(side // self.nodes, 1) for side in sides]
        pool: Any = {
            ("max", 2): F.max_pool2d,
            ("max", 3): F.max_pool3d,
            ("average", 2): F.avg_pool2d,
            ("average", 3): F.avg_pool3d,
        }[self.pooling, len(sides)]
        cases = torch.split(features, 1) if is_large(features) else (features,)
        nodes: Tensor = torch.cat([pool(case.to(dtype), windows, ceil_mode=True) for case in cases]).flatten(2)
        if not self.detach_norms:
            return directions(nodes, 1)
        norms = torch.linalg.vector_norm(nodes.detach(), dim=1, keepdim=True)
        return divided(nodes, norms)

    def extra_repr(self) -> str:
        size = f"window={self.window}" if self.nodes is None else f"nodes={self.nodes}"
        return f"{size}, pooling={self.pooling!r}" + (", detach_norms=True" if self.detach_norms else "")
