"""The device that commands use where none is given."""

from __future__ import annotations


def default_device() -> str:
    """``"cuda"`` where there is such a device, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
