"""The two phases of KD-SAM's training: which half of the student learns, and the progress of phase 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_kd.distillation.student import StudentWithAdapters

ENCODER, DECODER = "encoder", "decoder"


class PhasedStudent(StudentWithAdapters):
    """A student whose training output depends on the phase: the embedding, or logits of a frozen encoder."""

    learns = ENCODER

    def forward(self, images: Tensor) -> Any:
        """Return the embedding in phase 1 and logits in phase 2; in evaluation mode, always logits."""
        if not self.training:
            return self.student(images)
        encoder: Any = self.student.encoder
        if self.learns == ENCODER:
            return encoder(images)
        # Not torch.no_grad: where DDP splits a compiled forward pass, the parts after it would get no gradient.
        embedding = encoder(images).detach()
        return self.decoder(embedding, images.shape[2:])

    def train(self, mode: bool = True) -> PhasedStudent:
        """Set the mode, but keep a frozen encoder in evaluation mode so that its batch statistics do not change."""
        super().train(mode)
        if self.learns == DECODER:
            self.student.encoder.eval()  # type: ignore[union-attr]
        return self


@dataclass
class EncoderProgress:
    """The progress of phase 1, which every checkpoint keeps.

    Attributes:
        end: The first epoch of phase 2; ``None`` during phase 1.
        best_loss: The lowest validation loss so far.
        best_epoch: The epoch of the lowest validation loss.
        best_weights: The encoder's weights in that epoch; ``None`` in phase 2.
    """

    end: int | None = None
    best_loss: float = math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] | None = None
