"""One level of a wavelet transform with all bands stacked, so that one kernel runs where there is one per band."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import pywt
import torch
from torch import Tensor

from nnunet_kd.wavelets import WaveletCoefficients, analysis_matrix, band_names, constants, dwt, idwt

PARTED = 4096  # places in a band from which sums over them are computed in parts


class StackedBands:
    """The bands of one level, the approximation first, in the order of :func:`nnunet_kd.wavelets.band_names`.

    With a wavelet of two taps and even axes, a level is one product with a small matrix. Otherwise the bands are
    computed one by one, and each is filled up with zeros to the size of the approximation.

    Attributes:
        data: ``(bands, parts, B, C, voxels)``, memory of its own. The voxels of a band are parted along the first axis.
        coarse: Sizes of the approximation's axes.

    Args:
        features: ``(B, C, *spatial)``, one to three spatial axes, of any floating type.
        wavelet: PyWavelets name of an orthogonal wavelet.
        dtype: What to compute in, float32 or float64.
    """

    def __init__(self, features: Tensor, wavelet: str, dtype: torch.dtype) -> None:
        self._wavelet, self._fine = wavelet, features.shape[2:]
        self.coarse = torch.Size((length + 1) // 2 for length in self._fine)
        self._local = pywt.Wavelet(wavelet).dec_len == 2 and all(length % 2 == 0 for length in self._fine)
        batch, channels = features.shape[:2]
        bands = 2 ** len(self._fine)
        if self._local:
            self._parts = self.coarse[0] if self.coarse.numel() >= PARTED else 1
            blocks = self._blocks(features)
            corners = torch.empty(blocks.shape, dtype=dtype, device=features.device).copy_(blocks)
            data = _local_matrix(wavelet, len(self._fine), dtype, features.device) @ corners.view(bands, -1)
        else:
            self._parts = 1
            transformed = dwt(features.to(dtype), wavelet)
            data = features.new_zeros(bands, batch, channels, self.coarse.numel(), dtype=dtype)
            for place, band in zip(data, self._bands(transformed), strict=True):
                self._cut(place, band.shape[2:]).copy_(band)
        self.data = data.view(bands, self._parts, batch, channels, -1)

    @property
    def approximation(self) -> Tensor:
        """A view of the approximation, ``(B, C, *coarse)``."""
        return self._natural(self.data[0])

    @property
    def details(self) -> Tensor:
        """A view of the details, ``((bands - 1) * parts * B, C, voxels)``."""
        return self.data[1:].flatten(0, 2)

    def sizes(self) -> list[tuple[int, ...]]:
        """The sizes of the axes of every detail band."""
        halves = [{"a": (length + 1) // 2, "d": length // 2} for length in self._fine]
        names = band_names(len(self._fine))[1:]
        return [tuple(half[letter] for half, letter in zip(halves, name, strict=True)) for name in names]

    def places(self) -> Tensor | None:
        """Where details are no filling, ``((bands - 1) * parts * B, 1, voxels)`` of 0 and 1; ``None``: everywhere."""
        if all(size == self.coarse for size in self.sizes()):
            return None
        found = self.data.new_zeros(len(self.data) - 1, self.data.shape[2], 1, self.coarse.numel())
        for place, size in zip(found, self.sizes(), strict=True):
            self._cut(place, size).fill_(1)
        return found.flatten(0, 1)

    def back(self, out: Tensor) -> Tensor:
        """Transform back what the data hold now, into ``(B, C, *spatial)`` of any floating type; return it."""
        if self._local:
            matrix = _local_matrix(self._wavelet, len(self._fine), self.data.dtype, self.data.device)
            blocks = self._blocks(out)
            blocks.copy_((matrix.t() @ self.data.view(len(self.data), -1)).view(blocks.shape))
            return out
        names = band_names(len(self._fine))
        bands = [self._natural(self.data[0])]
        bands += [self._cut(band[0], size) for band, size in zip(self.data[1:], self.sizes(), strict=True)]
        details = dict(zip(names[1:], bands[1:], strict=True))
        return out.copy_(idwt(WaveletCoefficients(bands[0], (details,), self._wavelet)))

    def _bands(self, transformed: WaveletCoefficients) -> Sequence[Tensor]:
        level = transformed.details[0]
        return [transformed.approximation, *(level[name] for name in band_names(len(self._fine))[1:])]

    def _cut(self, band: Tensor, size: Sequence[int]) -> Tensor:
        """The part of ``(B, C, voxels)`` that is no filling, ``(B, C, *size)``."""
        whole = band.view(*band.shape[:-1], *self.coarse)
        for axis, length in enumerate(size, 2):
            whole = whole.narrow(axis, 0, length)
        return whole

    def _natural(self, band: Tensor) -> Tensor:
        """``(parts, B, C, voxels)`` as ``(B, C, *coarse)``, a view."""
        each = band.view(*band.shape[:-1], self.coarse[0] // self._parts, *self.coarse[1:])
        return each.movedim(0, 2).flatten(2, 3)

    def _blocks(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` as ``(*two each, parts, B, C, *voxels)``, a view."""
        dim = len(self._fine)
        pairs = [number for length in self.coarse for number in (length, 2)]
        x = x.view(*x.shape[:2], self._parts, self.coarse[0] // self._parts, *pairs[1:])
        return x.permute(*range(4, 4 + 2 * dim, 2), 2, 0, 1, *range(3, 3 + 2 * dim, 2))


@constants(maxsize=64)
def _local_matrix(wavelet: str, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From the corners of a block of two voxels per axis to its coefficients, ``(2 ** dim, 2 ** dim)``."""
    product: Tensor = reduce(torch.kron, [analysis_matrix(2, wavelet)] * dim)
    return product.to(device, dtype)
