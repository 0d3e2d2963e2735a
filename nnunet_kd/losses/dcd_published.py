r"""The details that DCD's authors compute, from the equations of their published code.

Fan et al., https://github.com/ClinicaAlpha/DCD-3D-MedSeg. Along one axis of n samples, with the analysis filter h and
the synthesis filter g of K taps of a band, both as PyWavelets prints them, samples outside the axis being 0:

.. math::
    c_k = \sum_j h_j\, x_{2k + j - K + 1}, \quad 0 \le k \le \lfloor (n + K - 2) / 2 \rfloor, \qquad
    y_m = \sum_k g_{m + K - 1 - 2k}\, c_k

A transform would convolve with h; this correlates with it, so the pair does not invert itself, and zeros beyond the
border give a constant details near the border. An odd axis comes back one sample shorter. The next level starts from
the low band of all axes, whose length never falls below K - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pywt
import torch
from torch import Tensor

from nnunet_kd.wavelets import Bands, constants, multiply_axis

Band = Literal["low", "high", "both"]

# A selection of bands as a sum of separable ones: the same band along every axis, times a sign.
_SUMS: Mapping[str, Mapping[Band, int]] = {
    "all": {"both": 1},
    "detail": {"both": 1, "low": -1},
    "directional": {"both": 1, "low": -1, "high": -1},
    "lll": {"low": 1},
    "hhh": {"high": 1},
}


def published_details(features: Tensor, wavelet: str, levels: int, bands: Bands) -> list[Tensor]:
    """Return what the published code reconstructs from the selected bands of every level; linear in the features.

    Args:
        features: Features in float32 or float64.
        wavelet: PyWavelets name of an orthogonal wavelet.
        levels: The number of decomposition levels.
        bands: The selection, as for :func:`nnunet_kd.wavelets.select_bands`.

    Shape:
        ``(B, C, *spatial)`` to one ``(B, C, *level)`` per level, finest first. An axis of one sample leaves nothing.
    """
    details = []
    for level in range(levels):
        if level:
            features = _along_axes(features, wavelet, None)
        parts = [sign * _along_axes(features, wavelet, band) for band, sign in _SUMS[bands].items()]
        details.append(sum(parts[1:], parts[0]))
    return details


def _along_axes(features: Tensor, wavelet: str, band: Band | None) -> Tensor:
    """Decompose and reconstruct one band along every axis; ``None`` decomposes the low band alone."""
    for axis in reversed(range(features.ndim - 2)):
        matrix = _matrix(features.shape[axis + 2], wavelet, band, features.dtype, features.device)
        features = multiply_axis(features, matrix, axis)
    return features


@constants(maxsize=1024)
def _matrix(length: int, wavelet: str, band: Band | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of one axis, ``(2 * (length // 2), length)``, or ``(coefficients, length)`` for ``None``."""
    filters = pywt.Wavelet(wavelet)
    low = _analysis(length, filters.dec_lo)
    if band is None:
        return low.to(device, dtype)
    high = _analysis(length, filters.dec_hi)
    from_low, from_high = _synthesis(length, filters.rec_lo) @ low, _synthesis(length, filters.rec_hi) @ high
    return {"low": from_low, "high": from_high, "both": from_low + from_high}[band].to(device, dtype)


def _analysis(length: int, taps: list[float]) -> Tensor:
    """The matrix from samples to coefficients of one band."""
    last = len(taps) - 1
    coefficients = (length + last - 1) // 2 + 1
    matrix = torch.zeros(coefficients, length, dtype=torch.float64)
    for k in range(coefficients):
        for j, tap in enumerate(taps):
            if 0 <= 2 * k + j - last < length:
                matrix[k, 2 * k + j - last] = tap
    return matrix


def _synthesis(length: int, taps: list[float]) -> Tensor:
    """The matrix from coefficients of one band to samples: a transposed convolution, cropped by K - 1 at both ends."""
    last = len(taps) - 1
    coefficients = (length + last - 1) // 2 + 1
    matrix = torch.zeros(2 * (length // 2), coefficients, dtype=torch.float64)
    for k in range(coefficients):
        for j, tap in enumerate(taps):
            if 0 <= 2 * k + j - last < matrix.shape[0]:
                matrix[2 * k + j - last, k] = tap
    return matrix
