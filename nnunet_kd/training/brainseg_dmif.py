"""BrainSegDMIF's training: FocalDice, Adam and a learning rate that is halved twice.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", sections 3.3.1 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.losses.focal_dice import FocalDiceLoss
from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF
from nnunet_kd.networks.sam_weights import load_sam_encoder
from nnunet_kd.nnunet.settings import require
from nnunet_kd.teachers.sam import load_sam
from nnunet_kd.training.schedules import StepSchedule
from nnunet_kd.training.trainer import DistillationTrainer


@dataclass(frozen=True)
class BrainSegDMIFSettings:
    """``nnunet_kd.method`` of the plans; the settings of the network are the plans' ``arch_kwargs``.

    Attributes:
        checkpoint: The file with SAM's weights, from which the encoders of all modalities start; ``None`` for random
            weights.
        model_type: A key of ``segment_anything.sam_model_registry``.
        milestones: The epochs, counted from 0, at which the learning rate is multiplied by ``factor``.
        factor: The factor of the learning rate at each milestone.
        gamma: The exponent of the focal loss.
        alpha: The weight of the foreground in the focal loss; ``None`` weighs all voxels equally.
        batch_dice: Whether the Dice is computed over the batch instead of per slice; under DDP each process computes it
            over its own part of the batch.
    """

    checkpoint: str | None = None
    model_type: str = "vit_b"
    milestones: list[int] = field(default_factory=lambda: [7, 12])
    factor: float = 0.5
    gamma: float = 2.0
    alpha: float | None = None
    batch_dice: bool = False

    def __post_init__(self) -> None:
        ascending = self.milestones == sorted(self.milestones) and all(epoch >= 0 for epoch in self.milestones)
        require(ascending, "method.milestones", "ascending epochs", self.milestones)
        require(0 < self.factor <= 1, "method.factor", "above 0 and at most 1", self.factor)
        require(self.gamma >= 0, "method.gamma", "at least 0", self.gamma)
        require(self.alpha is None or 0 < self.alpha < 1, "method.alpha", "between 0 and 1", self.alpha)


class FocalDiceOfTargets(nn.Module):
    """Apply :class:`FocalDiceLoss` to nnU-Net's targets: labels or regions, with or without ignored voxels.

    Args:
        loss: The loss, which takes classes or regions and a mask.
        labels: The reader of the targets.
    """

    def __init__(self, loss: FocalDiceLoss, labels: LabelCodes) -> None:
        super().__init__()
        self.focal_dice = loss
        self._labels = labels

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits and a target at the same resolution."""
        valid = self._labels.valid(target)
        if self._labels.regions:
            target = target[:, : logits.shape[1]]
        value: Tensor = self.focal_dice(logits, target, self._labels.regions, valid)
        return value


class BrainSegDMIFTrainer(DistillationTrainer):
    """nnU-Net's trainer for :class:`nnunet_kd.networks.brainseg_dmif.BrainSegDMIF`.

    Raises:
        ValueError: If settings, weights or the network do not fit.
        FileNotFoundError: If SAM's weights are missing.
    """

    network_of_plans = "brainseg_dmif"
    method = BrainSegDMIFSettings

    def set_up(self) -> None:
        """Read the settings, and check that SAM's weights exist before anything is trained."""
        self.enable_deep_supervision = False
        self.settings: BrainSegDMIFSettings = self.preparation.method
        checkpoint = self.settings.checkpoint
        if checkpoint is not None and not self.has_begun() and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"nnunet_kd.method.checkpoint: SAM's weights are missing at {checkpoint}")

    def start_weights(self, student: BrainSegDMIF) -> None:
        """Load SAM's encoder into the encoder of every modality, if the settings name a checkpoint."""
        if self.settings.checkpoint is not None:
            sam = load_sam(self.settings.model_type, Path(self.settings.checkpoint))
            load_sam_encoder(student, sam.state_dict())
            self.print_to_log_file(f"BrainSegDMIF: encoders start from {self.settings.checkpoint}")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, StepSchedule]:
        """Make Adam without weight decay and the step schedule of the learning rate."""
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr)
        return optimizer, StepSchedule(optimizer, self.settings.milestones, self.settings.factor)

    def _build_loss(self) -> nn.Module:
        """Build the FocalDice loss, eq. 14."""
        settings = self.settings
        return FocalDiceOfTargets(
            FocalDiceLoss(settings.gamma, settings.alpha, 1.0, settings.batch_dice), self.distiller.labels
        )
