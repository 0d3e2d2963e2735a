"""Distillation losses: tensors in, scalar out, ``(B, C, *spatial)``, usable without nnU-Net."""

from nnunet_kd.losses.dcd import DCDLoss

__all__ = ["DCDLoss"]
