"""The device that a command uses by default."""

from __future__ import annotations


def default_device() -> str:
    """Return ``"cuda"`` if PyTorch finds such a device, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
