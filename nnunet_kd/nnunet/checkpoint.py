"""Read nnU-Net checkpoints without running code that they contain."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_kd.nnunet.trust.archives import check_stored

# Besides tensors and plain Python objects, nnU-Net stores the NumPy numbers of its log. NumPy renamed the module of the
# function that rebuilds them, so both names are allowed, whichever version wrote the file.
_NUMBER = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


TRUST_TEACHER = 'If you trust its source, set "trust_checkpoint": true in nnunet_kd.teacher of the student\'s plans'
TRUST_MODEL = "If you trust its source, give --trust"


def read_checkpoint(
    path: Path, trust: bool = False, remedy: str = TRUST_TEACHER, configuration: str | None = None
) -> dict[str, Any]:
    """Read an nnU-Net checkpoint onto the CPU.

    Args:
        path: The ``.pth`` file.
        trust: Whether to unpickle any content, which runs the code in it.
        remedy: What a person who trusts the file has to do, for messages; a sentence without its full stop.
        configuration: The configuration that an untrusted checkpoint must name. Stock nnU-Net builds the network of
            the configuration named in the checkpoint, whatever its folder is called.

    Raises:
        ValueError: If the file cannot be read, is not an nnU-Net checkpoint, contains more than weights and numbers,
            or belongs to another configuration.
    """
    if not trust:
        check_stored(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(f"cannot read checkpoint {path}: it is damaged or not a PyTorch file") from error
        raise ValueError(
            f"checkpoint {path} contains more than weights and numbers, and loading it could run code. {remedy}"
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
        why = f" ({type(error).__name__}: {error})".split("\n")[0] if trust else ""  # for example, a missing class
        raise ValueError(f"cannot read checkpoint {path}: it is truncated or not a PyTorch file{why}") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "trainer_name"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of an nnU-Net trainer")
    if configuration is not None and not trust:
        settings = checkpoint.get("init_args")
        named = settings.get("configuration") if isinstance(settings, dict) else None
        if named != configuration:
            raise ValueError(
                f"checkpoint {path} belongs to configuration {str(named)[:60]!r}, not to {configuration}. {remedy}"
            )
    return checkpoint


def mirroring_axes(checkpoint: dict[str, Any], path: Path) -> tuple[int, ...] | None:
    """Return the axes along which the training mirrored its images, or ``None`` if it did not mirror them.

    Raises:
        ValueError: If the checkpoint names anything other than axes.
    """
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if axes is None:
        return None
    if not isinstance(axes, list | tuple) or not all(axis in (0, 1, 2) for axis in axes) or len(axes) > 3:
        raise ValueError(f"{path} names mirroring axes {str(axes)[:60]}, but axes are 0, 1 and 2")
    return tuple(axes)
