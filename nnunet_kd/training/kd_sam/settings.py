"""The settings of KD-SAM's training in the plans."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_kd.networks.pretrained import IMAGENET
from nnunet_kd.nnunet.settings import require
from nnunet_kd.teachers.sam import NORMALISATIONS


@dataclass(frozen=True)
class KDSAMSettings:
    """``nnunet_kd.method`` of the plans.

    Attributes:
        checkpoint: The file with SAM's weights, which teach the encoder and initialize the decoder. Required.
        model_type: A key of ``segment_anything.sam_model_registry`` (KD-SAM uses ViT-H).
        channels: One to three input channels that become red, green and blue; ``None`` for the first three.
        normalisation: ``"sam"``, or ``"medsam"`` for weights of MedSAM, whose images are stretched and scaled to 0..1.
        embeddings: The name of stored embeddings (``nnunet_kd soft-labels --embeddings``). ``None`` runs SAM on the
            augmented patches while the encoder trains.
        encoder_epochs: The longest training of the encoder, as a whole number of epochs or a fraction of the training.
        patience: The number of epochs without a lower validation loss after which the encoder's training ends. The best
            encoder weights are kept.
        plateau_patience: The number of epochs without a lower validation loss that are tolerated in either phase; in
            the next one the learning rate is divided by ten.
        weight_decay: The weight decay of Adam.
        perceptual_weight: The weight of the perceptual loss, relative to the MSE; 0 omits the loss.
        perceptual_weights: The weights of VGG-16: a file with a state dict of torchvision's VGG-16, ``"imagenet"`` for
            torchvision's weights, which are downloaded once, or ``"random"``.
        encoder_weights: The initial weights of the ResNet: a file with a state dict of torchvision's ResNet-50,
            ``"imagenet"``, or ``None`` for random weights.
    """

    checkpoint: str | None = None
    model_type: str = "vit_h"
    channels: list[int] | None = None
    normalisation: str = "sam"
    embeddings: str | None = None
    encoder_epochs: float = 0.5
    patience: int = 20
    plateau_patience: int = 10
    weight_decay: float = 1e-3
    perceptual_weight: float = 1.0
    perceptual_weights: str = IMAGENET
    encoder_weights: str | None = None

    def __post_init__(self) -> None:
        known = self.normalisation in NORMALISATIONS
        require(known, "method.normalisation", " or ".join(map(repr, NORMALISATIONS)), self.normalisation)
        require(self.checkpoint is not None, "method.checkpoint", "a file with SAM's weights", None)
        fits = self.encoder_epochs <= 1 if isinstance(self.encoder_epochs, float) else True
        epochs = "a whole number of epochs from 1, or a fraction of the training"
        require(self.encoder_epochs > 0 and fits, "method.encoder_epochs", epochs, self.encoder_epochs)
        for key, least in (("patience", 1), ("plateau_patience", 0), ("weight_decay", 0), ("perceptual_weight", 0)):
            require(getattr(self, key) >= least, f"method.{key}", f"at least {least}", getattr(self, key))

    def longest_encoder(self, num_epochs: int) -> int:
        """Return the largest number of epochs for the encoder.

        Raises:
            ValueError: If no epoch is left for the decoder.
        """
        epochs = self.encoder_epochs
        count = math.ceil(epochs * num_epochs) if isinstance(epochs, float) else epochs
        require(count < num_epochs, "method.encoder_epochs", f"below the {num_epochs} epochs of the training", epochs)
        return count
