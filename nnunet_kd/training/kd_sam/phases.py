"""What KD-SAM's two phases need beside nnU-Net's: which half learns, at what rate, and how far phase 1 has come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_kd.distillation.student import StudentWithAdapters

ENCODER, DECODER = "encoder", "decoder"


class PhasedStudent(StudentWithAdapters):
    """In training mode it computes what is learnt: the embedding, or the logits on a frozen encoder."""

    learns = ENCODER

    def forward(self, images: Tensor) -> Any:
        """The embedding, or logits; logits in evaluation mode."""
        if not self.training:
            return self.student(images)
        encoder: Any = self.student.encoder
        if self.learns == ENCODER:
            return encoder(images)
        with torch.no_grad():
            embedding = encoder(images)
        return self.decoder(embedding, images.shape[2:])

    def train(self, mode: bool = True) -> PhasedStudent:
        """A frozen encoder stays in evaluation mode: its batch statistics are not to move either."""
        super().train(mode)
        if self.learns == DECODER:
            self.student.encoder.eval()  # type: ignore[union-attr]
        return self


@dataclass
class EncoderProgress:
    """How far phase 1 has come; saved with every checkpoint.

    Attributes:
        end: First epoch of phase 2, once it is known.
        best_loss: Lowest validation loss.
        best_epoch: When.
        best_weights: Of the encoder, then; empty in phase 2.
    """

    end: int | None = None
    best_loss: float = math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] | None = None
