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
    """``nnunet_kd.method`` of the plans. The network's own settings are the plans' ``arch_kwargs``.

    Attributes:
        checkpoint: SAM's weights, which every modality's encoder starts from; ``None``: random weights.
        model_type: Key of ``segment_anything.sam_model_registry``.
        milestones: Epochs, counted from 0, from which on the learning rate is multiplied once more.
        factor: By this.
        gamma: Of the focal loss.
        alpha: Weight of its foreground; ``None``: all voxels weigh the same.
        batch_dice: Dice of the whole batch instead of each slice; under DDP of each process's share of it.
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
    """:class:`FocalDiceLoss` of nnU-Net's training targets: labels or regions, some voxels perhaps ignored.

    Args:
        loss: On classes or regions and a mask.
        labels: Reads the targets.
    """

    def __init__(self, loss: FocalDiceLoss, labels: LabelCodes) -> None:
        super().__init__()
        self.focal_dice = loss
        self._labels = labels

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of logits and a target at the same resolution."""
        valid = self._labels.valid(target)
        if self._labels.regions:
            target = target[:, : logits.shape[1]]
        value: Tensor = self.focal_dice(logits, target, self._labels.regions, valid)
        return value


class BrainSegDMIFTrainer(DistillationTrainer):
    """nnU-Net's trainer for :class:`nnunet_kd.networks.brainseg_dmif.BrainSegDMIF`.

    Raises:
        ValueError: For settings, weights or a network that do not fit.
        FileNotFoundError: Where SAM's weights are missing.
    """

    network_of_plans = "brainseg_dmif"
    method = BrainSegDMIFSettings

    def set_up(self) -> None:
        """Read the settings."""
        self.enable_deep_supervision = False
        self.settings: BrainSegDMIFSettings = self.preparation.method
        checkpoint = self.settings.checkpoint
        if checkpoint is not None and not self.has_begun() and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"nnunet_kd.method.checkpoint: there are no weights of SAM in {checkpoint}")

    def start_weights(self, student: BrainSegDMIF) -> None:
        """Every modality's encoder starts from SAM's, where the settings name one."""
        if self.settings.checkpoint is not None:
            sam = load_sam(self.settings.model_type, Path(self.settings.checkpoint))
            load_sam_encoder(student, sam.state_dict())
            self.print_to_log_file(f"BrainSegDMIF: encoders start from {self.settings.checkpoint}")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, StepSchedule]:
        """Adam, without weight decay."""
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr)
        return optimizer, StepSchedule(optimizer, self.settings.milestones, self.settings.factor)

    def _build_loss(self) -> nn.Module:
        """FocalDice, eq. 14."""
        settings = self.settings
        return FocalDiceOfTargets(
            FocalDiceLoss(settings.gamma, settings.alpha, 1.0, settings.batch_dice), self.distiller.labels
        )
