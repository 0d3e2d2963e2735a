"""Write checkpoints so that a kill or a full disk leaves the previous one whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nnunet_kd.writing import replacing


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save``; the file is complete, or the one before it."""
    with replacing(Path(path)) as unfinished:
        torch.save(content, unfinished)
