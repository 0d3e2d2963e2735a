"""The student and the adapters that train with it, as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class StudentWithAdapters(nn.Module):
    """Student and adapters for optimizer, gradient clipping and DDP; the plain student for everybody else.

    In training mode the forward pass returns logits and encoder features, in evaluation mode what the student
    returns. ``state_dict`` and ``load_state_dict`` are the student's: nnU-Net saves and loads no adapter.

    Args:
        student: A network with nnU-Net's ``decoder``, and ``encoder`` where features are wanted.
        adapters: Term name -> its adapters.
        features: Give the features of the encoder stages.
    """

    def __init__(self, student: nn.Module, adapters: nn.ModuleDict, features: bool = True) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters
        self.gives_features = features

    @property
    def decoder(self) -> nn.Module:
        """nnU-Net switches deep supervision here."""
        decoder: nn.Module = self.student.decoder  # type: ignore[assignment]
        return decoder

    def forward(self, images: Tensor) -> Any:
        """``(logits, features)`` in training mode, logits in evaluation mode; a list each under deep supervision.

        Features are empty where they are not wanted.
        """
        if not self.training:
            return self.student(images)
        if not self.gives_features:
            return self.student(images), []
        features = self.student.encoder(images)  # type: ignore[operator]
        return self.decoder(features), features

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.load_state_dict(*args, **kwargs)
