"""nnU-Net's five normalisations of intensities, in place and without copies of the image."""

from __future__ import annotations

import math

import numpy as np

from .plans import Normalization

_LEAST = 1e-8  # the smallest divisor


def normalize(image: np.ndarray, normalization: Normalization, mask: np.ndarray | None) -> None:
    """Normalise one channel in place.

    Args:
        image: The channel, float32 ``(z, y, x)``.
        normalization: The scheme and its settings.
        mask: The voxels that are not background, ``(z, y, x)``, for a z-score inside the mask.

    Raises:
        ValueError: If the scheme is for colours and values are not from 0 to 255.
    """
    scheme = normalization.scheme
    if scheme == "ZScoreNormalization":
        _z_score(image, mask if normalization.inside_mask else None)
    elif scheme == "CTNormalization":
        known = normalization.intensities
        np.clip(image, known["percentile_00_5"], known["percentile_99_5"], out=image)
        image -= known["mean"]
        image /= max(known["std"], _LEAST)
    elif scheme == "RescaleTo01Normalization":
        image -= image.min()
        image /= max(image.max(), _LEAST)
    elif scheme == "RGBTo01Normalization":
        if image.min() < 0 or image.max() > 255:
            raise ValueError(f"colours must be from 0 to 255, got {image.min():g} to {image.max():g}")
        image /= 255


def _z_score(image: np.ndarray, mask: np.ndarray | None) -> None:
    """Subtract the mean and divide by the standard deviation, both of the mask; only the mask changes.

    The sums run plane by plane in double precision, so that the image is never copied.
    """
    masks: list[np.ndarray | slice] = [slice(None)] * len(image) if mask is None else list(mask)
    count = image.size if mask is None else int(np.count_nonzero(mask))
    if count == 0:
        return
    mean = sum(float(plane[inside].sum(dtype=np.float64)) for plane, inside in zip(image, masks, strict=True)) / count
    squares = (
        float(np.square(plane[inside] - mean, dtype=np.float64).sum())
        for plane, inside in zip(image, masks, strict=True)
    )
    deviation = max(math.sqrt(sum(squares) / count), _LEAST)
    for plane, inside in zip(image, masks, strict=True):
        plane[inside] = (plane[inside] - np.float32(mean)) / np.float32(deviation)
