"""Write checkpoints so that a kill or a full disk leaves the previous one whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_kd.storage.writing import replacing


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save``; the file is complete, or the one before it."""
    with replacing(Path(path)) as unfinished:
        torch.save(content, unfinished)


def plainly_laid_out(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, each contiguous; names that share a tensor, of which nnU-Net has many, share it still."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        key = (weight.data_ptr(), weight.shape)
        if key not in made:
            made[key] = weight.contiguous()
    return {name: made[weight.data_ptr(), weight.shape] for name, weight in weights.items()}
