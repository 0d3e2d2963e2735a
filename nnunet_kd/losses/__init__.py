"""Distillation losses: tensors in, scalar out, ``(B, C, *spatial)``, usable without nnU-Net."""

from nnunet_kd.losses.cwd import CWDLoss
from nnunet_kd.losses.dcd import DCDLoss
from nnunet_kd.losses.dual_self import DualSelfLoss
from nnunet_kd.losses.fitnets import FitNetsLoss
from nnunet_kd.losses.freekd import FreeKDLoss
from nnunet_kd.losses.ifvd import IFVDLoss
from nnunet_kd.losses.logits import LogitsKDLoss

__all__ = ["CWDLoss", "DCDLoss", "DualSelfLoss", "FitNetsLoss", "FreeKDLoss", "IFVDLoss", "LogitsKDLoss"]
