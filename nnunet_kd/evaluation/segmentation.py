"""Read a segmentation, a reference or a prediction: one label per voxel, or the reason why it is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.nnunet.labels import whole_labels
from nnunet_kd.nnunet.library_errors import reason
from nnunet_kd.storage.integrity import check_whole


def read_segmentation(reader: type, path: Path) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Labels ``(z, y, x)``, a single slice of a 2-D image, and what nnU-Net's reader says of the image.

    nnU-Net itself takes the first channel of a colour picture and the first volume of a series.

    Args:
        reader: nnU-Net's class.
        path: The file.

    Raises:
        ValueError: Naming the file, where it cannot be read, is cut off, or has several values per voxel.
    """
    try:
        check_whole(path)
        labels, properties = reader().read_seg(str(path))
    except Exception as error:  # every reader has its own
        raise ValueError(f"cannot read {path}: {reason(error, path)}") from error
    of_vectors = len(properties["spacing"]) < 3  # SimpleITK takes the values of a voxel for one more axis
    values = labels.shape[-1] if of_vectors else len(labels)
    if of_vectors or values != 1:
        raise ValueError(
            f"{path} has {values} values per voxel (the channels of a colour picture, or several volumes); a "
            "segmentation has one label per voxel"
        )
    return whole_labels(labels[0]), properties
