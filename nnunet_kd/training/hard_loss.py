"""Losses on the labels, for papers that do not use nnU-Net's Dice and cross-entropy."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn


def without_dice(loss: nn.Module) -> None:
    """Reduce nnU-Net's loss to cross-entropy, in place.

    nnU-Net's own ``weight_dice = 0`` returns the number 0 instead of a tensor if a batch has no annotated voxel.

    Args:
        loss: nnU-Net's loss, with or without deep supervision.
    """
    inner: Any = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    inner.dc = _NoDice()


class _NoDice(nn.Module):
    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return 0 with a gradient."""
        return 0 * logits.float().mean()
