"""Cross-image relational distillation.

Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022: pixel-to-pixel
relations within a batch, and pixel-to-pixel and pixel-to-region relations with memories.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.cirkd_memory import RelationMemory
from nnunet_kd.losses.features import (
    check_classes,
    check_count,
    check_number,
    check_pair,
    check_temperature,
    in_type_of,
    single_precision,
)
from nnunet_kd.losses.relations import JointBatch, directions, pooled

MOST = 100_000  # entries of a memory per class


class CIRKDLoss(nn.Module):
    r"""How similar is each voxel to the voxels of other images? Student and teacher should agree.

    .. math:: L = D(S, T) + \beta\, D(S_p, T_p) + \gamma\, D(S_r, T_r), \qquad
        D(S, T) = \mathrm{mean}_x\, \mathrm{KL}\left(\sigma(T(x) / \tau)\, \|\, \sigma(S(x) / \tau)\right)

    The relations S(x) and T(x) are the cosines of the student's and of the teacher's features at x with a set of
    others: in the first term with those of the same network at all voxels of one image, for each image of the batch in
    turn; in the second with the teacher's features at voxels of earlier batches; in the third with the teacher's mean
    features of a class in one earlier image. For the last two a head, 1x1(x1) convolution, batch normalisation, ReLU
    and convolution, takes the student's features to the teacher's width.

    The maps are pooled to a grid first, by the mean, as in the authors' code for large maps. The class of a box is that
    of its central voxel. The direction of the divergence and the details of the memories are those of the authors'
    code, but for two. The memory of voxels is a ring, while theirs starts again where the next entries would not fit.
    And of a class with n voxels in an image we remember some of these, as the paper says, while their code takes them
    from the first n voxels of the image, of whatever class.

    The batch is the joint one of all processes, as are the memories: every process holds the same entries, and compares
    its own voxels with them.

    Args:
        temperature: :math:`\tau`.
        pixel_weight: :math:`\beta`.
        region_weight: :math:`\gamma`. If both are 0, there is neither a head nor a memory.
        grid: The most boxes along an axis.
        pixel_memory: The voxels in the memory, per class; 20000 in the authors' code, which has one map. Here each
            stage has a memory of its own.
        region_memory: The regions in the memory, per class; 2000 in the authors' code.
        pixels: The voxels of a class in an image that enter the memory, drawn at random.
        pixel_contrasts: The voxels that are drawn from the memory for a step, for all classes together.
        region_contrasts: The regions that are drawn likewise.

    Raises:
        ValueError: For options out of range.
    """

    needs_classes = True
    remembers_classes = True

    def __init__(
        self,
        temperature: float = 0.1,
        pixel_weight: float = 0.1,
        region_weight: float = 0.1,
        grid: int = 8,
        pixel_memory: int = 2000,
        region_memory: int = 200,
        pixels: int = 16,
        pixel_contrasts: int = 4096,
        region_contrasts: int = 1024,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_number("pixel_weight", pixel_weight, positive=False)
        check_number("region_weight", region_weight, positive=False)
        check_count("grid", grid, 16)
        check_count("pixel_memory", pixel_memory, MOST)
        check_count("region_memory", region_memory, MOST)
        check_count("pixels", pixels, 4096)
        check_count("pixel_contrasts", pixel_contrasts, MOST)
        check_count("region_contrasts", region_contrasts, MOST)
        self.temperature = float(temperature)
        self.pixel_weight, self.region_weight = float(pixel_weight), float(region_weight)
        self.grid, self.pixels = grid, pixels
        self.pixel_memory, self.region_memory = pixel_memory, region_memory
        self.pixel_contrasts, self.region_contrasts = pixel_contrasts, region_contrasts

    def projection(self, student_channels: int, teacher_channels: int, dim: int, num_classes: int) -> nn.Module:
        """Build the head and the memories of one stage, whose entries start as random directions."""
        if not (self.pixel_weight or self.region_weight):
            return nn.Identity()
        return RelationMemory(student_channels, teacher_channels, num_classes, self.pixel_memory, self.region_memory)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        projection: nn.Module | None = None,
        *,
        classes: Tensor,
        num_classes: int | None = None,
    ) -> Tensor:
        """Loss of one stage. The teacher's features receive no gradient, and enter the memories.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: The head and memories; without them, only the relations within the batch count.
            classes: The class of every voxel, whole numbers from 0; -1: neither compared with the memories nor
                remembered. May lie on a finer grid.
            num_classes: The number of classes; if given, that of the memories.

        Shape:
            ``(B, C_S, *spatial)``, ``(B, C_T, *spatial)``, ``(B, *annotated)``, two or three spatial axes, to a
            scalar.

        Raises:
            ValueError: For tensors that do not fit each other or the projection.
        """
        check_pair(student, teacher)
        check_classes(classes, student)
        memory = _memory_of(projection, student, teacher, num_classes)
        dtype = single_precision(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = (pooled(maps, self.grid, dtype) for maps in (student, teacher.detach()))
            batch = JointBatch(ours)
            ours, theirs = batch.gather(ours), directions(batch.gather(theirs))
            total = self._within(batch, directions(ours), theirs)
            if memory is None:
                return total
            sizes = [min(self.grid, side) for side in student.shape[2:]]
            labels = F.interpolate(classes[:, None].float(), sizes, mode="nearest-exact").flatten(1).long()
            scores = torch.rand(labels.shape, device=labels.device)
            labels, scores = batch.gather(labels), batch.gather(scores)
            memory.remember(theirs, labels, scores, self.pixels)
            heads = directions(in_type_of(ours, memory.head)(ours))
            valid = labels >= 0
            rows = batch.rows
            anchors = (heads[rows].flatten(0, 1), theirs[rows].flatten(0, 1), valid[rows].flatten())
            share = batch.processes / valid.sum().clamp(min=1)
            for weight, entries, contrasts in (
                (self.pixel_weight, memory.pixels, self.pixel_contrasts),
                (self.region_weight, memory.regions, self.region_contrasts),
            ):
                if weight:
                    total = total + weight * share * self._with_memory(*anchors, _drawn(entries, contrasts, dtype))
            return total

    def _within(self, batch: JointBatch, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the divergence within the joint batch, from this process's part of it; ``(B, boxes, C)`` each."""
        logs = []
        for every in (ours, theirs):
            cosines = every[batch.rows].flatten(0, 1) @ every.flatten(0, 1).T
            logs.append(F.log_softmax(cosines.view(-1, *every.shape[:2]) / self.temperature, 2))
        return batch.processes * _divergence(*logs).sum() / (batch.size**2 * ours.shape[1])

    def _with_memory(self, ours: Tensor, theirs: Tensor, valid: Tensor, entries: Tensor) -> Tensor:
        """Return the divergence of the relations with entries of a memory, summed over the anchors that count."""
        ours, theirs = (F.log_softmax(anchors @ entries.T / self.temperature, 1) for anchors in (ours, theirs))
        return (_divergence(ours, theirs).sum(1) * valid).sum()

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return ", ".join(f"{name}={value:g}" for name, value in options.items())


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the terms of the divergence of log probabilities."""
    return F.kl_div(student, teacher, reduction="none", log_target=True)


def _drawn(entries: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return a random part of a memory, the same places of every class; ``(classes, size, C)`` to ``(drawn, C)``."""
    of_class = count // len(entries) + 1
    if of_class < entries.shape[1]:
        places = torch.rand(entries.shape[1], device=entries.device).topk(of_class).indices
        entries = entries[:, places]
    return entries.flatten(0, 1).to(dtype, copy=True)  # the memory changes before the backward pass may have run


def _memory_of(
    projection: nn.Module | None, student: Tensor, teacher: Tensor, num_classes: int | None
) -> RelationMemory | None:
    """Return the memory among what a projection may be.

    Raises:
        ValueError: For a projection of another kind, or for other widths or classes.
    """
    if projection is None or isinstance(projection, nn.Identity):
        return None
    if not isinstance(projection, RelationMemory):
        raise ValueError(f"the projection must be one of CIRKDLoss.projection, got {type(projection).__name__}")
    made_for, got = projection.made_for, (student.shape[1], teacher.shape[1], num_classes)
    if made_for[:2] != got[:2] or num_classes not in (None, made_for[2]):
        raise ValueError(
            "the memory is for {} and {} channels and {} classes, got {} and {} channels and {} classes".format(
                *made_for, *got
            )
        )
    return projection
