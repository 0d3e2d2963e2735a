"""Read a reference or predicted segmentation, which must have one label per voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.nnunet.labels import whole_labels
from nnunet_kd.storage.integrity import check_whole


def read_segmentation(reader: type, path: Path) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Read the labels ``(z, y, x)`` of a segmentation, which has a single slice if it is 2-D, and its properties.

    Files with several values per voxel are refused, whereas nnU-Net uses the first channel of a colour picture and the
    first volume of a series.

    Args:
        reader: nnU-Net's class that reads the file.
        path: The file.

    Raises:
        ValueError: If the file cannot be read, is truncated, or has several values per voxel; the message names it.
    """
    try:
        check_whole(path)
        labels, properties = reader().read_seg(str(path))
    except Exception as error:  # every reader raises its own exceptions
        raise ValueError(f"cannot read {path}: {reason(error, path)}") from error
    of_vectors = len(properties["spacing"]) < 3  # SimpleITK returns the values of a voxel as an additional axis
    values = labels.shape[-1] if of_vectors else len(labels)
    if of_vectors or values != 1:
        raise ValueError(
            f"{path} has {values} values per voxel (the channels of a colour picture, or several volumes); a "
            "segmentation has one label per voxel"
        )
    return whole_labels(labels[0]), properties
