"""The student and the adapters that train with it, as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class StudentWithAdapters(nn.Module):
    """Student and adapters for optimizer, gradient clipping and DDP; the plain student for everybody else.

    In training mode the forward pass returns logits and encoder features, in evaluation mode what the student
    returns. ``state_dict`` and ``load_state_dict`` are the student's: nnU-Net saves and loads no adapter.

    Args:
        student: A network with nnU-Net's ``encoder`` and ``decoder``.
        adapters: Term name -> its adapters.
    """

    def __init__(self, student: nn.Module, adapters: nn.ModuleDict) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters

    @property
    def decoder(self) -> nn.Module:
        """nnU-Net switches deep supervision here."""
        decoder: nn.Module = self.student.decoder  # type: ignore[assignment]
        return decoder

    def forward(self, images: Tensor) -> Any:
        """``(logits, features)`` in training mode, logits in evaluation mode; a list each under deep supervision.

        Features are empty where no term reads them.
        """
        if not self.training:
            return self.student(images)
        if not self.adapters:
            return self.student(images), []
        features = self.student.encoder(images)  # type: ignore[operator]
        return self.decoder(features), features

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.load_state_dict(*args, **kwargs)
