"""The selected bands of features in memory that may be overwritten, and the transform back from what it then holds.

Memory has the first spatial axis outermost, so that low and high half of two axes are plain views, a product of
matrices along any axis reads and writes all of it once, and sums over voxels come in as many parts as the axis is long.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_kd.wavelets import analysis_matrix, constants, dense_matrix

DENSE = 512  # voxels from which all levels are one product of matrices


@dataclass(frozen=True)
class Selection:
    """Which bands are selected.

    Attributes:
        wavelet: PyWavelets name of an orthogonal wavelet.
        keep: Names of the bands, the same along every axis, from :func:`nnunet_kd.wavelets.select_bands`.
        each_level: Whether the approximation is selected at every level or at the last alone, where it is kept.
        factors: What each level's tensor is multiplied with before it is transformed, finest level first.
    """

    wavelet: str
    keep: frozenset[str]
    each_level: bool
    factors: tuple[float, ...]


class WaveletDetails:
    """The selected bands of all levels, in an orthonormal basis times the factors.

    Attributes:
        components: Tensors ``(parts, C, voxels)``, views of memory of their own. Batch and places are in ``parts``.

    Args:
        features: ``(B, C, *spatial)``, float32 or float64, two or three spatial axes.
        selection: Which bands.
    """

    def __init__(self, features: Tensor, selection: Selection) -> None:
        self.shape = features.shape
        self.components: list[Tensor] = []
        self._levels: list[_Level] = []
        self._dense: tuple[Tensor, Tensor] | None = None
        rest = features.movedim(2, 0)
        for number in range(len(selection.factors)):
            if rest.numel() <= DENSE * features.shape[0] * features.shape[1]:
                spatial = torch.Size((rest.shape[0], *rest.shape[3:]))
                matrix = _dense_matrix(spatial, selection, number, features.dtype, features.device)
                self._dense = rest.movedim(0, 2).flatten(2) @ matrix, matrix
                self.components.append(self._dense[0])
                break
            level = _Level(rest, selection, number)
            self._levels.append(level)
            self.components += level.components
            rest = level.approximation
        self.components = [component for component in self.components if component.numel()]

    def back(self) -> Tensor:
        """Transform back what the components hold now, with the same factors; they must not be used afterwards.

        Shape:
            Returns ``(B, C, *spatial)``.
        """
        if self._dense is not None:
            component, matrix = self._dense
            result = component @ matrix.t()
            if not self._levels:
                return result.view(self.shape)
            coarse = self._levels[-1].approximation
            coarse.copy_(result.view(*coarse.shape[1:3], coarse.shape[0], *coarse.shape[3:]).movedim(2, 0))
        for number in reversed(range(1, len(self._levels))):
            self._levels[number].back(self._levels[number - 1].approximation)
        result = torch.empty(self.shape, dtype=self.components[0].dtype, device=self.components[0].device)
        self._levels[0].back(result.movedim(2, 0))
        return result


class _Level:
    """One level of a tensor ``(n, B, C, *others)``.

    ``approximation`` has the same order of axes, but for the last two spatial axes, which are exchanged.
    """

    def __init__(self, x: Tensor, selection: Selection, number: int) -> None:
        dim, self._ends = x.ndim - 2, number == len(selection.factors) - 1
        self._wavelet, self._lowest = selection.wavelet, "a" * dim
        self._wanted = selection.keep if selection.each_level or self._ends else selection.keep - {self._lowest}
        self._needed = self._wanted if self._ends else self._wanted | {self._lowest}
        self.components: list[Tensor] = []
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []  # a block, what it became, and the matrix
        self._copies: list[tuple[Tensor, Tensor]] = []  # the approximation, and its copy as a component
        self._unused: list[Tensor] = []
        self.approximation = x
        self._first, rows = self._matrix(x, 0, 0, selection.factors[number])
        self._second, columns = self._matrix(x, 3, 1)
        partly = x.new_empty(self._first.shape[0], *x.shape[1:])
        torch.bmm(_each(self._first, x.shape[1] * x.shape[2]), _by_map(x), out=_by_map(partly))
        if dim == 2:
            whole = torch.mm(partly.view(-1, x.shape[3]), self._second.t())
        else:
            slabs = partly.view(-1, *x.shape[3:])
            whole = torch.bmm(_each(self._second, len(slabs)), slabs)
        self._whole = whole.view(*partly.shape[:3], len(self._second), *x.shape[4:])
        for (first, row), (second, column) in itertools.product(rows.items(), columns.items()):
            self._split(self._whole[row, :, :, column], first + second)

    def _matrix(self, x: Tensor, position: int, axis: int, factor: float = 1.0) -> tuple[Tensor, dict[str, slice]]:
        """The rows that are needed of an axis' matrix, and where those of each letter are."""
        letters = "".join(sorted({name[axis] for name in self._needed}))
        return _rows(x.shape[position], self._wavelet, letters, factor, x.dtype, x.device)

    def _split(self, block: Tensor, prefix: str) -> None:
        """Take the bands below a prefix of two letters from ``(n, B, C, *rest)``."""
        below = {name for name in self._needed if name.startswith(prefix)}
        if (block.ndim == 4 and below) or (len(below) == 2 and (self._ends or self._lowest not in below)):
            self._take(block, prefix)
        elif below:
            letters = "".join(sorted(name[2] for name in below))
            matrix, rows = _rows(block.shape[4], self._wavelet, letters, 1.0, block.dtype, block.device)
            slabs = block.flatten(0, 2)
            product = torch.bmm(_each(matrix, len(slabs)), slabs.transpose(1, 2))
            self._products.append((slabs, product, matrix))
            parted = product.view(*block.shape[:3], *product.shape[1:])
            for letter, row in rows.items():
                self._take(parted[:, :, :, row], prefix + letter)
        else:
            self._unused.append(block)

    def _take(self, band: Tensor, name: str) -> None:
        """Take a band as a component, as the approximation, or as both."""
        component = band
        if name == self._lowest and not self._ends:
            self.approximation = band
            if name not in self._wanted:
                return
            component = band.clone(memory_format=torch.contiguous_format)
            self._copies.append((band, component))
        self.components.append(component.flatten(3).flatten(0, 1))

    def back(self, out: Tensor) -> None:
        """Transform back into ``(n, B, C, *others)``."""
        for approximation, copy in self._copies:
            approximation.add_(copy)
        for block, product, matrix in self._products:
            torch.bmm(product.transpose(1, 2), _each(matrix, len(product)), out=block)
        for block in self._unused:
            block.zero_()
        partly = self._whole.new_empty(*self._whole.shape[:3], *out.shape[3:])
        if out.ndim == 4:
            torch.mm(self._whole.view(-1, len(self._second)), self._second, out=partly.view(-1, out.shape[3]))
        else:
            slabs = self._whole.view(-1, *self._whole.shape[3:])
            torch.bmm(_each(self._second.t(), len(slabs)), slabs, out=partly.view(-1, *out.shape[3:]))
        torch.bmm(_each(self._first.t(), out.shape[1] * out.shape[2]), _by_map(partly), out=_by_map(out))


def _each(matrix: Tensor, count: int) -> Tensor:
    return matrix.expand(count, -1, -1)


def _by_map(x: Tensor) -> Tensor:
    """``(n, B, C, *others)`` as ``(B * C, n, voxels)``, a view."""
    return x.flatten(3).flatten(1, 2).transpose(0, 1)


def _rows(
    length: int, wavelet: str, letters: str, factor: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, dict[str, slice]]:
    """The rows of an axis' matrix for these letters, and where those of each letter are."""
    low = (length + 1) // 2
    starts = {"a": (0, low), "d": (low, length)}
    offset = starts[letters[0]][0]
    places = {letter: slice(starts[letter][0] - offset, starts[letter][1] - offset) for letter in letters}
    return _scaled_rows(length, wavelet, letters, factor, dtype, device), places


@constants(maxsize=1024)
def _scaled_rows(
    length: int, wavelet: str, letters: str, factor: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    full, low = analysis_matrix(length, wavelet), (length + 1) // 2
    rows = {"a": full[:low], "d": full[low:], "ad": full}[letters]
    return (factor * rows).to(device, dtype).contiguous()


@constants(maxsize=256)
def _dense_matrix(
    spatial: torch.Size, selection: Selection, number: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """All levels from this one as a matrix (voxels, coefficients)."""
    factors = selection.factors[number:]
    matrix, rows = dense_matrix(
        spatial,
        selection.wavelet,
        len(factors),
        selection.keep,
        selection.each_level,
        torch.float64,
        torch.device("cpu"),
    )
    scales = [scale for count, scale in zip(rows, itertools.accumulate(factors, operator.mul), strict=True)
              for _ in range(count)]  # fmt: skip
    return (matrix * torch.tensor(scales, dtype=torch.float64)).to(device, dtype)
