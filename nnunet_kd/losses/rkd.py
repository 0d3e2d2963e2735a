"""Relational knowledge distillation.

Park et al., "Relational Knowledge Distillation", CVPR 2019, distance-wise and angle-wise loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.features import check_count, check_number, check_pair, single_precision
from nnunet_kd.losses.relations import EPS, JointBatch, directions, pooled


class RKDLoss(nn.Module):
    r"""Do the student's embeddings lie to each other as the teacher's do?

    .. math:: L = \lambda_D\, \mathrm{mean}_{ij}\, h\!\left(\frac{\|s_i - s_j\|}{\mu_S},
        \frac{\|t_i - t_j\|}{\mu_T}\right) + \lambda_A\, \mathrm{mean}_{ijk}\, h\!\left(\cos \angle s_j s_i s_k,\,
        \cos \angle t_j t_i t_k\right)

    h is the Huber loss and :math:`\mu` the mean of a network's distances above 0. The paper sums over the tuples. Its
    authors' code, as here, takes the mean over all of them, also over those in which samples repeat.

    Two samples have one distance, which is its own mean, and no angle but 0 and 180 degrees: both terms are 0, whatever
    the networks. A batch of nnU-Net often is two images, while the paper has an embedding for each of 128. So every map
    is parted here into boxes, whose mean features are the embeddings; with ``parts=1`` it has one embedding. The
    relations are those within the joint batch of all processes. Distances are compared by their ratios, so widths need
    not agree and there is no adapter. Scaling, shifting or rotating all features of the batch changes nothing.

    Args:
        distance_weight: :math:`\lambda_D`; the paper's for classification.
        angle_weight: :math:`\lambda_A`; likewise.
        parts: The boxes along an axis; an axis that is shorter has one per voxel.

    Raises:
        ValueError: For weights that are no numbers of at least 0, or both 0, or for ``parts`` that are not from 1 to 4.
    """

    has_projection = False

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0, parts: int = 2) -> None:
        super().__init__()
        check_number("distance_weight", distance_weight, positive=False)
        check_number("angle_weight", angle_weight, positive=False)
        if distance_weight == 0 and angle_weight == 0:
            raise ValueError("distance_weight and angle_weight are both 0: give one of them a weight")
        check_count("parts", parts, 4)
        self.distance_weight, self.angle_weight = float(distance_weight), float(angle_weight)
        self.parts = parts

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
            ValueError: For tensors that do not fit each other, or with fewer than three embeddings.
        """
        check_pair(student, teacher)
        dtype = single_precision(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = (pooled(maps, self.parts, dtype) for maps in (student, teacher.detach()))
            batch, boxes = JointBatch(ours), ours.shape[1]
            count = batch.size * boxes
            if count < 3:
                raise ValueError(
                    f"relations need three embeddings, got {count}: a batch of {batch.size} with {boxes} boxes each"
                )
            rows = slice(batch.rows.start * boxes, batch.rows.stop * boxes)
            found, taught = (self._relations(batch.gather(maps).flatten(0, 1), rows) for maps in (ours, theirs))
            distance, angle = (F.smooth_l1_loss(a, b, reduction="sum") for a, b in zip(found, taught, strict=True))
            total = self.distance_weight * distance / count**2 + self.angle_weight * angle / count**3
            return batch.processes * total

    def _relations(self, embeddings: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return distances and cosines from the embeddings of ``rows`` to all, ``(rows, N)`` and ``(rows, N, N)``."""
        largest = embeddings.detach().abs().amax().clamp(min=1e-30)  # relations are relative, squares may overflow
        embeddings = embeddings / largest
        differences = embeddings - embeddings[:, None]  # [i, j] leads from i to j
        distances = torch.linalg.vector_norm(differences, dim=2)
        mean = distances.sum() / (distances > 0).sum().clamp(min=1)
        away = directions(differences[rows])
        return distances[rows] / mean.clamp(min=EPS), away @ away.transpose(1, 2)

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight:g}, angle_weight={self.angle_weight:g}, parts={self.parts}"
