"""What plans can say of KD-SAM's training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_kd.networks.pretrained import IMAGENET
from nnunet_kd.nnunet.settings import require


@dataclass(frozen=True)
class KDSAMSettings:
    """``nnunet_kd.method`` of the plans.

    Attributes:
        checkpoint: SAM's weights: what teaches the encoder, and what the decoder starts from. Has to be given.
        model_type: Key of ``segment_anything.sam_model_registry`` (KD-SAM: ViT-H).
        channels: One to three input channels that become red, green and blue; ``None``: the first three.
        embeddings: Name of stored embeddings (``nnunet_kd soft-labels --embeddings``); ``None``: SAM runs during the
            training of the encoder, and sees the augmented patches.
        encoder_epochs: Longest training of the encoder: a whole number of epochs, or a fraction of the training.
        patience: Epochs without a lower validation loss after which the encoder is done and its best weights are kept.
        plateau_patience: Epochs without one that are put up with; at the next the learning rate is divided by ten, in
            both phases.
        weight_decay: Adam's.
        perceptual_weight: Of the perceptual loss beside the MSE; 0 leaves it out.
        perceptual_weights: Of VGG-16: a file with torchvision's state dict; ``"imagenet"``: torchvision's own,
            downloaded once; ``"random"``: none that were trained.
        encoder_weights: What the ResNet starts from: such a file, ``"imagenet"``, or ``None``: random weights.
    """

    checkpoint: str | None = None
    model_type: str = "vit_h"
    channels: list[int] | None = None
    embeddings: str | None = None
    encoder_epochs: float = 0.5
    patience: int = 20
    plateau_patience: int = 10
    weight_decay: float = 1e-3
    perceptual_weight: float = 1.0
    perceptual_weights: str = IMAGENET
    encoder_weights: str | None = None

    def __post_init__(self) -> None:
        require(self.checkpoint is not None, "method.checkpoint", "a file with SAM's weights", None)
        fits = self.encoder_epochs <= 1 if isinstance(self.encoder_epochs, float) else True
        epochs = "a whole number of epochs from 1, or a fraction of the training"
        require(self.encoder_epochs > 0 and fits, "method.encoder_epochs", epochs, self.encoder_epochs)
        for key, least in (("patience", 1), ("plateau_patience", 0), ("weight_decay", 0), ("perceptual_weight", 0)):
            require(getattr(self, key) >= least, f"method.{key}", f"at least {least}", getattr(self, key))

    def longest_encoder(self, num_epochs: int) -> int:
        """Epochs the encoder may take.

        Raises:
            ValueError: Where none is left for the decoder.
        """
        epochs = self.encoder_epochs
        count = math.ceil(epochs * num_epochs) if isinstance(epochs, float) else epochs
        require(count < num_epochs, "method.encoder_epochs", f"below the {num_epochs} epochs of the training", epochs)
        return count
