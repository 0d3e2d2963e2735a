"""``splits_final.json`` in ``nnUNet_preprocessed``, where nnU-Net looks for it."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.datasets.splits import Splits
from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.storage.writing import write_whole


@dataclass(frozen=True)
class Placed:
    """Where nnU-Net will find the splits of a data set.

    Attributes:
        path: The file that holds these splits now; ``None`` if there are none, or other splits are there, or the file
            cannot be written.
        others: The file that was there before and holds other splits, which nnU-Net would use.
    """

    path: Path | None = None
    others: Path | None = None


def place_splits(splits: Splits | None, training: Set[str], path: Path) -> Placed:
    """Write splits unless the file already exists.

    A file that cannot be written is no error: the data set has a copy, which the person can put there.

    Args:
        splits: What to write; ``None`` where nnU-Net will draw the splits itself.
        training: Identifiers of the training cases.
        path: ``nnUNet_preprocessed/DatasetXXX_Name/splits_final.json``.
    """
    if _holds_others(path, splits, training):
        return Placed(others=path)
    if splits is None:
        return Placed()
    try:
        if not path.exists():
            write_splits(splits, path)
    except OSError:
        return Placed()
    return Placed(path)


def write_splits(splits: Splits, path: Path) -> None:
    """Write the file, whole."""
    write_whole(path, json.dumps(splits, indent=1))


def _holds_others(path: Path, splits: Splits | None, training: Set[str]) -> bool:
    """Return whether the file is there and holds other splits or, if ``splits`` is ``None``, splits of other cases."""
    if not path.exists():
        return False
    try:
        found = read_splits(path)
    except ValueError:
        return True
    if splits is not None:
        return bool(found != splits)
    return any({*fold["train"], *fold["val"]} != training for fold in found)
