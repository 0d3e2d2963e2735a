"""The student and the adapters that train with it, as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.distillation.terms import ActiveTerm
from nnunet_kd.networks.stages import EncoderStages, decoder_stages, encoder_stages

NARROW = 8  # channels of the first 3D convolution, up to which channels last is faster: benchmarks/memory_layout.py


def in_fast_layout(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, on a CPU with its weights channels last if it is a narrow 3D one, which trains faster so.

    Every other network, and any on another device, is left as it is. Shapes and values stay, results too but for
    rounding: what changes is the order in memory.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv3d)), None)
    if device.type != "cpu" or first is None or first.out_channels > NARROW:
        return network
    return network.to(memory_format=torch.channels_last_3d)


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
        self._levels: list[Tensor] | None = None  # there is one during a forward pass
        if levels:
            for stage in decoder_stages(student):
                stage.register_forward_hook(self._keep)

    def _keep(self, _stage: nn.Module, _inputs: Any, features: Tensor) -> None:
        if self._levels is not None:
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
        levels, self._levels = self._levels, None
        return logits, features, levels

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.load_state_dict(*args, **kwargs)


def adapters_of(terms: Sequence[ActiveTerm], student: nn.Module, teacher: EncoderStages | None) -> nn.ModuleDict:
    """Term name -> what trains with the student for it.

    Raises:
        NotImplementedError: Where a term reads features or levels the student does not show.
    """
    stages = encoder_stages(student) if any(term.reads_features for term in terms) else None
    levels = len(decoder_stages(student)) if any(term.reads_levels for term in terms) else 0
    adapters = nn.ModuleDict()
    for term in terms:
        adapters[term.name] = term.adapters(stages, teacher, levels)
    return adapters


def check_network(student: nn.Module, class_name: str, trainer: str) -> None:
    """Whether the plans name the network a trainer is made for.

    Raises:
        ValueError: With the command that makes such plans.
    """
    kind = type(student)
    if f"{kind.__module__}.{kind.__qualname__}" != class_name:
        module, _, wanted = class_name.rpartition(".")
        raise ValueError(
            f"{trainer} trains {wanted}, the plans name {kind.__qualname__}: make plans with nnunet_kd plan --network "
            f"{module.rpartition('.')[2]}"
        )


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
