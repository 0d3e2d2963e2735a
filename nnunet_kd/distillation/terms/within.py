"""Terms within the student, which need no teacher."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term
from nnunet_kd.networks.stages import EncoderStages


class SelfTerm(Term):
    """A loss on the student's own encoder and decoder stages; there is no teacher (DSVM-UNet, eq. 2 and 3).

    The loss has ``forward(encoder, decoder, adapters)``, highest resolution first, and ``adapters(encoder_widths,
    decoder_widths, dim)``.
    """

    needs_teacher: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True
    reads_decoder: ClassVar[bool] = True

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the value over all stages."""
        value: Tensor = self.loss(step.encoder, step.decoder, adapters)
        return value

    def adapters(self, student: EncoderStages | None, teacher: EncoderStages | None, decoder: int = 0) -> nn.Module:
        """Build the loss's own adapters; a decoder stage is as wide as the encoder stage of its resolution."""
        assert student is not None
        adapters: nn.Module = self.loss.adapters(student.widths, student.widths[:decoder], student.dim)
        return adapters
