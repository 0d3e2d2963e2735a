"""Write checkpoints so that a kill or a full disk leaves the previous one whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, onto the disk, then renamed over ``path``."""
    temporary = Path(f"{path}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
