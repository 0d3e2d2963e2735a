"""Perceptual distance of two embeddings.

Patil et al., "Efficient Knowledge Distillation of SAM for Medical Image Segmentation", eq. 3, after Johnson et al.,
"Perceptual Losses for Real-Time Style Transfer and Super-Resolution", 2016. The paper speaks both of activations of
VGG and of layers of the two encoders; here both embeddings become images of three channels, by the same fixed rule,
and are seen by the same frozen VGG-16 (Simonyan & Zisserman, 2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nnunet_kd.losses.features import in_single_precision, in_type_of


class PerceptualLoss(nn.Module):
    r"""Distance of two embeddings as a frozen VGG-16 sees them.

    .. math:: L_P = \sum_l \frac{1}{C_l H_l W_l} \sum_{c,h,w} \left(\phi_l^T - \phi_l^S\right)^2

    at relu1_2, relu2_2, relu3_3 and relu4_3, averaged over the batch. The three channels VGG sees are the means of the
    first, second and last third of the embedding's channels. Computed in float32 at least.

    Args:
        vgg: Layers of a VGG-16; frozen.
        ends: Positions of the l among them.

    Shape:
        student, teacher: ``(B, C, H, W)``, C at least 3, H and W at least 8. Result: scalar.
    """

    def __init__(self, vgg: nn.Sequential, ends: Sequence[int] = (3, 8, 15, 22)) -> None:
        super().__init__()
        self._ends = tuple(ends)
        self.vgg = vgg.eval().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance; its gradient reaches the student only.

        Raises:
            ValueError: For embeddings of different or too small shapes.
        """
        if student.shape != teacher.shape:
            raise ValueError(f"the student's embedding is {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
        if student.ndim != 4 or student.shape[1] < 3 or min(student.shape[2:]) < 8:
            raise ValueError(f"VGG-16 needs (B, C, H, W) with C >= 3, H, W >= 8, got {tuple(student.shape)}")
        with in_single_precision(student, teacher) as (student, teacher):
            with torch.no_grad():
                taught = list(self._layers(_three_channels(teacher)))
            seen = self._layers(_three_channels(student))
            distances = [(a - b).square().mean() for a, b in zip(seen, taught, strict=True)]
        return torch.stack(distances).sum()

    def _layers(self, images: Tensor) -> Iterator[Tensor]:
        for number, layer in enumerate(self.vgg):
            images = in_type_of(images, layer)(images)
            if number in self._ends:
                yield images


def _three_channels(embedding: Tensor) -> Tensor:
    return torch.stack([third.mean(1) for third in torch.tensor_split(embedding, 3, dim=1)], 1)
