"""The student, its adapters and its weight average as one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from nnunet_kd.distillation.average import WeightAverage
from nnunet_kd.networks.stages import decoder_stages


class StudentOutputs(NamedTuple):
    """The outputs of a student in training mode.

    Attributes:
        logits: One tensor, or a list with one per scale under deep supervision, finest first.
        encoder: Features of the encoder stages, highest resolution first; empty if no term reads them.
        decoder: Features of the decoder stages, highest resolution first; empty if no term reads them.
    """

    logits: Any
    encoder: list[Tensor]
    decoder: list[Tensor]


class StudentWithAdapters(nn.Module):
    """A student with its adapters, which looks like the plain student outside training.

    The optimizer, gradient clipping and DDP see student and adapters. In training mode the forward pass returns
    :class:`StudentOutputs`; in evaluation mode it returns the output of the student, or of its :attr:`average` if there
    is one. ``state_dict`` is that of the evaluated network, so nnU-Net saves no adapters.

    Args:
        student: A network with nnU-Net's ``decoder``, and with ``encoder`` if its features are wanted.
        adapters: Term name -> its adapters.
        encoder: Whether to return the features of the encoder stages.
        decoder: Whether to return the features of the decoder stages.

    Attributes:
        average: The average of the student's weights, or ``None``. Set it after the optimizer was made, which must not
            train it.
    """

    def __init__(
        self, student: nn.Module, adapters: nn.ModuleDict, encoder: bool = True, decoder: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters
        self.average: WeightAverage | None = None
        self._gives_encoder = encoder
        self._decoder_features = _Recorder()
        if decoder:
            for stage in decoder_stages(student):
                stage.register_forward_hook(self._decoder_features)

    @property
    def decoder(self) -> nn.Module:
        """The student's decoder, on which nnU-Net switches deep supervision."""
        decoder: nn.Module = self.student.decoder  # type: ignore[assignment]
        return decoder

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved."""
        return self.student if self.average is None else self.average.network

    def forward(self, images: Tensor) -> Any:
        """Return :class:`StudentOutputs` in training mode, logits in evaluation mode."""
        if not self.training:
            return self.evaluated(images)
        self._decoder_features.begin()
        if self._gives_encoder:
            features = self.student.encoder(images)  # type: ignore[operator]
            logits = self.decoder(features)
        else:
            logits, features = self.student(images), []
        return StudentOutputs(logits, features, self._decoder_features.end())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the network that is validated and saved."""
        return self.evaluated.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state into the student and its average."""
        if self.average is not None:
            self.average.network.load_state_dict(*args, **kwargs)
        return self.student.load_state_dict(*args, **kwargs)


def check_adapters(adapters: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Check that saved adapters are those of this training.

    Raises:
        ValueError: If names or shapes differ.
    """
    now, before = ({name: tuple(one.shape) for name, one in them.items()} for them in (adapters.state_dict(), saved))
    if now != before:
        raise ValueError(
            "this training was begun with other options of its terms, which need other adapters, than "
            "nnunet_kd.method of the plans has now: restore nnunet_kd.method, or train from the start without --c"
        )


class _Recorder:
    """A forward hook that records the outputs of a pass, last one first."""

    def __init__(self) -> None:
        self._features: list[Tensor] | None = None

    def __call__(self, _stage: nn.Module, _inputs: Any, features: Tensor) -> None:
        if self._features is not None:
            self._features.insert(0, features)

    def begin(self) -> None:
        self._features = []

    def end(self) -> list[Tensor]:
        features, self._features = self._features, None
        assert features is not None
        return features
