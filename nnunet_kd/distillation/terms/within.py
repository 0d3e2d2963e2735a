"""Terms that compare the student's own features, without a teacher."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.terms.base import Term, is_frozen
from nnunet_kd.networks.stages import EncoderStages


class SelfTerm(Term):
    """A self-distillation loss on the student's encoder and decoder features (DSVM-UNet, eq. 2 and 3).

    The loss has ``forward(encoder, decoder, adapters)``, with features in order of falling resolution, and
    ``adapters(encoder_widths, decoder_widths, dim, grids)``, which builds the adapters.

    Args:
        name: As for :class:`Term`.
        loss: As for :class:`Term`.
        num_epochs: As for :class:`Term`.
        projection: ``"learned"`` to train the adapters with the student, or ``"frozen"`` to keep their random start.
        common: ``weight`` and ``ramp``.
    """

    needs_teacher: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True
    reads_decoder: ClassVar[bool] = True

    def __init__(self, name: str, loss: Any, num_epochs: int, *, projection: str = "learned", **common: Any) -> None:
        super().__init__(name, loss, num_epochs, **common)
        self.frozen_projection = is_frozen(projection)

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the loss over all stages."""
        value: Tensor = self.loss(step.encoder, step.decoder, adapters)
        return value

    def adapters(
        self,
        student: EncoderStages | None,
        teacher: EncoderStages | None,
        decoder: int = 0,
        num_classes: int | None = None,
    ) -> nn.Module:
        """Build the loss's adapters; a decoder stage has the width of the encoder stage at its resolution."""
        assert student is not None
        widths = (student.widths, student.widths[:decoder])
        adapters: nn.Module = self.loss.adapters(*widths, student.dim, student.grids)
        return adapters.requires_grad_(not self.frozen_projection)

    def __str__(self) -> str:
        return f"{super().__str__()}{', projection frozen' if self.frozen_projection else ''}"
