"""The student and the adapters that train with it, as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnunet_kd.teachers.stages import decoder_stages


class StudentWithAdapters(nn.Module):
    """Student and adapters for optimizer, gradient clipping and DDP; the plain student for everybody else.

    In training mode the forward pass returns logits and features, in evaluation mode what the student returns.
    ``state_dict`` and ``load_state_dict`` are the student's: nnU-Net saves and loads no adapter.

    Args:
        student: A network with nnU-Net's ``decoder``, and ``encoder`` where features are wanted.
        adapters: Term name -> its adapters.
        features: Give the features of the encoder stages.
        levels: Give the features of the decoder stages.
    """

    def __init__(
        self, student: nn.Module, adapters: nn.ModuleDict, features: bool = True, levels: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters
        self.gives_features = features
        self._levels: list[Tensor] = []
        if levels:
            for stage in decoder_stages(student):
                stage.register_forward_hook(self._keep)

    def _keep(self, _stage: nn.Module, _inputs: Any, features: Tensor) -> None:
        if self.training:
            self._levels.insert(0, features)

    @property
    def decoder(self) -> nn.Module:
        """nnU-Net switches deep supervision here."""
        decoder: nn.Module = self.student.decoder  # type: ignore[assignment]
        return decoder

    def forward(self, images: Tensor) -> Any:
        """``(logits, encoder features, decoder features)`` in training mode, logits in evaluation mode.

        Features are lists, highest resolution first, empty where they are not wanted; logits are one under deep
        supervision.
        """
        if not self.training:
            return self.student(images)
        self._levels = []
        if self.gives_features:
            features = self.student.encoder(images)  # type: ignore[operator]
            logits = self.decoder(features)
        else:
            logits, features = self.student(images), []
        levels, self._levels = self._levels, []
        return logits, features, levels

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.load_state_dict(*args, **kwargs)
