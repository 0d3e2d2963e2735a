"""Exponential moving average of the student's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps an average of a module's parameters and running statistics and changes places with it.

    While the module trains it holds its own weights; :meth:`show` puts the average into it for validation and
    saving, :meth:`hide` puts its own back.

    Args:
        module: The module; its tensors are exchanged in place, so compiled and wrapped copies see it too.
        decay: ``average = decay * average + (1 - decay) * weights`` after every step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shown = False
        self._own: dict[str, Tensor] = dict(module.named_parameters())
        self._own |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self._other = {name: tensor.detach().clone() for name, tensor in self._own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one training step into the average."""
        assert not self.shown, "the average is in the module: hide() it before training"
        torch._foreach_lerp_(list(self._other.values()), list(self._own.values()), 1 - self.decay)

    def show(self) -> None:
        """Put the average into the module."""
        if not self.shown:
            self._exchange()

    def hide(self) -> None:
        """Put the module's own weights back."""
        if self.shown:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._own.items():
            held = tensor.detach().clone()
            tensor.copy_(self._other[name])
            self._other[name].copy_(held)
        self.shown = not self.shown

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that are not in the module now."""
        return self._other

    def load_state_dict(self, state: dict[str, Tensor], shown: bool) -> None:
        """Restore what :meth:`state_dict` returned, the module itself having been restored already."""
        for name, weights in state.items():
            self._other[name].copy_(weights)
        self.shown = shown
