"""What the labels themselves train with, where a paper asks for other than nnU-Net's Dice and cross-entropy."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn


def without_dice(loss: nn.Module) -> None:
    """Leave cross-entropy alone of nnU-Net's loss.

    nnU-Net's own ``weight_dice = 0`` gives the number 0 instead of a tensor where a batch has no annotated voxel.

    Args:
        loss: nnU-Net's, with or without deep supervision; changed.
    """
    inner: Any = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    inner.dc = _NoDice()


class _NoDice(nn.Module):
    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """0, with a gradient."""
        return 0 * logits.float().mean()
