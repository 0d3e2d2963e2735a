"""Read nnU-Net checkpoints without running code that came with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What nnU-Net stores besides tensors and plain Python: NumPy numbers in its logging. NumPy renamed the module of the
# function that makes them, so both names are known, whichever version wrote the file.
_NUMBER = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """An nnU-Net checkpoint, on the CPU.

    Args:
        path: The ``.pth`` file.
        trust: Unpickle whatever it holds. That runs code in it.

    Raises:
        ValueError: If the file cannot be read, is no nnU-Net checkpoint, or holds more than weights and numbers.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(f"cannot read checkpoint {path}: it is no PyTorch file, or damaged") from error
        raise ValueError(
            f"checkpoint {path} holds more than weights and numbers, and loading it could run code. If you trust "
            'where it comes from, set "trust_checkpoint": true in nnunet_kd.teacher of the plans'
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"cannot read checkpoint {path}: it is truncated or no PyTorch file") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "trainer_name"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of an nnU-Net trainer")
    return checkpoint
