"""The memories of cross-image relational distillation, and the head before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_kd.losses.relations import directions


class RelationHead(nn.Sequential):
    """The map of a student's features to the teacher's width, ``(B, voxels, C_S)`` to ``(B, voxels, C_T)``.

    Args:
        student_channels: The student's width.
        teacher_channels: The teacher's width.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(
            nn.Linear(student_channels, teacher_channels, bias=False),
            BatchStandardisation(teacher_channels),
            nn.ReLU(),
            nn.Linear(teacher_channels, teacher_channels, bias=False),
        )


class BatchStandardisation(nn.Module):
    """Batch normalisation over all voxels of its input, which is the batch of all processes already.

    It has no running statistics, as it is not needed after training.

    Args:
        channels: The number of channels, the last axis.
        eps: What is added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Return normalised features, ``(B, voxels, C)``."""
        variance, mean = torch.var_mean(features, (0, 1), correction=0)
        return (features - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class RelationMemory(nn.Module):
    """The head, and the teacher's directions of voxels and regions of earlier batches, class by class.

    The memories are buffers: a checkpoint keeps them with the weights of the head.

    Args:
        student_channels: The student's width.
        teacher_channels: The teacher's width.
        num_classes: The number of classes.
        pixels: The most voxels per class.
        regions: The most regions per class.

    Attributes:
        head: The map of the student's features to the teacher's width.
        pixels: Directions of voxels, ``(classes, voxels, C_T)``; random ones until they are replaced.
        regions: Directions of the mean features of a class in an image, ``(classes, regions, C_T)``.
        next_pixel: The place of the next voxel of each class.
        next_region: The place of the next region of each class.
    """

    pixels: Tensor
    regions: Tensor
    next_pixel: Tensor
    next_region: Tensor

    def __init__(
        self, student_channels: int, teacher_channels: int, num_classes: int, pixels: int, regions: int
    ) -> None:
        super().__init__()
        self.made_for = (student_channels, teacher_channels, num_classes)
        self.head = RelationHead(student_channels, teacher_channels)
        for name, size in (("pixel", pixels), ("region", regions)):
            self.register_buffer(f"{name}s", directions(torch.randn(num_classes, size, teacher_channels)))
            self.register_buffer(f"next_{name}", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor, scores: Tensor, pixels: int) -> None:
        """Replace the oldest entries by those of a batch; features that are not finite are left out.

        Args:
            features: Directions of the teacher's features, ``(B, voxels, C_T)``.
            labels: Their classes, ``(B, voxels)``; negative: not remembered.
            scores: Random numbers from 0 to 1, which choose among the voxels of a class; ``(B, voxels)``.
            pixels: How many voxels of a class in an image are remembered, at most.
        """
        features = features.to(self.pixels.dtype)
        finite = features.isfinite().all(2)
        features = features.masked_fill(~finite[:, :, None], 0)
        numbers = torch.arange(len(self.pixels), device=labels.device)
        members = (labels[:, None] == numbers[:, None]) & finite[:, None]  # image, class, voxel
        counts = members.sum(2)
        means = members.to(features.dtype) @ features / counts.clamp(min=1)[:, :, None]
        _replace(self.regions, self.next_region, directions(means).transpose(0, 1), (counts > 0).T)
        ranked = scores[:, None].masked_fill(~members, -1).topk(min(pixels, features.shape[1]), dim=2)
        images = torch.arange(len(features), device=labels.device)[:, None, None]
        chosen, found = features[images, ranked.indices].transpose(0, 1), (ranked.values >= 0).transpose(0, 1)
        _replace(self.pixels, self.next_pixel, chosen.flatten(1, 2), found.flatten(1, 2))


def _replace(memory: Tensor, following: Tensor, entries: Tensor, found: Tensor) -> None:
    """Write the entries that were found into rings, without waiting for the device to know how many there are.

    Args:
        memory: The rings of all classes, ``(classes, size, C)``.
        following: The place of the next entry of each class, ``(classes,)``.
        entries: The entries, oldest first, ``(classes, N, C)``; as many as a ring has room for are written.
        found: Which of them there are, boolean ``(classes, N)``.
    """
    size = memory.shape[1]
    order = (~found).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
    found = found.gather(1, order)
    entries = entries.gather(1, order[:, :, None].expand(-1, -1, entries.shape[2]))
    places = (following[:, None] + torch.arange(order.shape[1], device=order.device)) % size
    places = places[:, :, None].expand_as(entries)
    memory.scatter_(1, places, torch.where(found[:, :, None], entries, memory.gather(1, places)))
    following.copy_((following + found.sum(1)) % size)
