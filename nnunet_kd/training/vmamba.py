"""VM-UNet's start from VMamba's ImageNet weights."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from nnunet_kd.networks.vm_unet import VMUNet
from nnunet_kd.networks.vmamba_weights import load_vmamba, read_vmamba
from nnunet_kd.nnunet.settings import BLOCK

_KEY = f"{BLOCK}.training.initial_weights"


class VMambaStart:
    """VMamba's weights, which were found to fit a student before anything is trained.

    Args:
        path: The file with the weights.
        network: The student's network on the meta device.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it cannot be read, or if the network is not a VM-UNet of VMamba's size.
    """

    def __init__(self, path: Path, network: nn.Module) -> None:
        if not isinstance(network, VMUNet):
            raise ValueError(f"{_KEY}: VMamba's weights fit VM-UNet, but the plans name {type(network).__name__}")
        self._path = path
        try:
            self._weights = read_vmamba(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns that copying to the meta device has no effect
                load_vmamba(network, self._weights)
        except ValueError as error:
            raise ValueError(f"{_KEY}: {error}") from None

    def load(self, student: nn.Module) -> str:
        """Load the weights into the student, and return a line for the log that says what starts at random."""
        assert isinstance(student, VMUNet)
        left = load_vmamba(student, self._weights)
        rest = f", except {', '.join(left)}" if left else ""
        return f"initial weights: those of VMamba in {self._path} for encoder and decoder blocks{rest}"
