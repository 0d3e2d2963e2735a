"""Read nnU-Net checkpoints without running code that came with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_kd.nnunet.trust.archives import check_stored

# What nnU-Net stores besides tensors and plain Python: NumPy numbers in its logging. NumPy renamed the module of the
# function that makes them, so both names are known, whichever version wrote the file.
_NUMBER = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


TRUST_TEACHER = (
    'If you trust where it comes from, set "trust_checkpoint": true in nnunet_kd.teacher of the student\'s plans'
)
TRUST_MODEL = "If you trust where it comes from, give --trust"


def read_checkpoint(
    path: Path, trust: bool = False, remedy: str = TRUST_TEACHER, configuration: str | None = None
) -> dict[str, Any]:
    """Read an nnU-Net checkpoint onto the CPU.

    Args:
        path: The ``.pth`` file.
        trust: Unpickle whatever it holds. That runs code in it.
        remedy: What to do where it is trusted; a sentence without its full stop.
        configuration: The one it must name, unless it is trusted: stock nnU-Net builds the network of the one it
            names, whatever the folder is called.

    Raises:
        ValueError: If the file cannot be read, is no nnU-Net checkpoint, holds more than weights and numbers, or is
            of another configuration.
    """
    if not trust:
        check_stored(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(f"cannot read checkpoint {path}: it is no PyTorch file, or damaged") from error
        raise ValueError(
            f"checkpoint {path} holds more than weights and numbers, and loading it could run code. {remedy}"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        why = f" ({type(error).__name__}: {error})".split("\n")[0] if trust else ""  # a class that is missing, perhaps
        raise ValueError(f"cannot read checkpoint {path}: it is truncated or no PyTorch file{why}") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "trainer_name"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of an nnU-Net trainer")
    if configuration is not None and not trust:
        settings = checkpoint.get("init_args")
        named = settings.get("configuration") if isinstance(settings, dict) else None
        if named != configuration:
            raise ValueError(
                f"checkpoint {path} is of configuration {str(named)[:60]!r}, not {configuration}. {remedy}"
            )
    return checkpoint


def mirroring_axes(checkpoint: dict[str, Any], path: Path) -> tuple[int, ...] | None:
    """Return the axes that the training mirrored along; ``None``: none.

    Raises:
        ValueError: For something else.
    """
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if axes is None:
        return None
    if not isinstance(axes, list | tuple) or not all(axis in (0, 1, 2) for axis in axes) or len(axes) > 3:
        raise ValueError(f"{path} was mirrored along {str(axes)[:60]}, which are no axes")
    return tuple(axes)
