"""Losses: tensors in, scalar out, ``(B, C, *spatial)``, usable without nnU-Net.

All distil but :class:`FocalDiceLoss`, which compares a segmentation with its labels.
"""

from nnunet_kd.losses.cirkd import CIRKDLoss
from nnunet_kd.losses.cwd import CWDLoss
from nnunet_kd.losses.dcd import DCDLoss
from nnunet_kd.losses.dprd import DPRDLoss
from nnunet_kd.losses.dual_self import DualSelfLoss
from nnunet_kd.losses.fitnets import FitNetsLoss
from nnunet_kd.losses.focal_dice import FocalDiceLoss
from nnunet_kd.losses.freekd import FreeKDLoss
from nnunet_kd.losses.ifvd import IFVDLoss
from nnunet_kd.losses.logits import LogitsKDLoss
from nnunet_kd.losses.perceptual import PerceptualLoss
from nnunet_kd.losses.reco_kd import ReCoKDLoss
from nnunet_kd.losses.rkd import RKDLoss
from nnunet_kd.losses.skd import SKDLoss

__all__ = [
    "CIRKDLoss",
    "CWDLoss",
    "DCDLoss",
    "DPRDLoss",
    "DualSelfLoss",
    "FitNetsLoss",
    "FocalDiceLoss",
    "FreeKDLoss",
    "IFVDLoss",
    "LogitsKDLoss",
    "PerceptualLoss",
    "RKDLoss",
    "ReCoKDLoss",
    "SKDLoss",
]
