"""Exact orthonormal wavelet transforms on the trailing spatial axes of ``(B, C, *spatial)``.

Each axis of length ``n`` has one orthonormal ``n x n`` analysis matrix: ``ceil(n / 2)`` low-pass rows, then
``floor(n / 2)`` high-pass rows. A separable transform is that matrix applied along every axis, its inverse the
transpose. Nothing is padded and nothing is cropped, so reconstruction is exact for every size.

The rule for the matrix of length ``n``:

* even: the wavelet's filters wrapped around the axis. This is PyWavelets' ``mode="periodization"``, also where
  the axis is shorter than the filter.
* odd: the matrix of ``n - 1``, the last sample passing to the low band as it is; then one rotation of the low
  band that maps constant signals to constant signals.
* one: the sample is the low band.

Both keep what matters for distillation: a constant has no detail at any level, up to the edges of the patch.
(Truncating the filters at the border and orthonormalising them, the usual boundary wavelets, moves 33 % of a
constant's energy into the details at length 8 with db4, and 8 % at length 32.)

Bands are named as in PyWavelets: one letter an axis, ``a`` for low-pass, ``d`` for high-pass; the papers' LLL
and HHH are ``aaa`` and ``ddd``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Literal, ParamSpec, TypeVar, cast

import pywt
import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Bands = Literal["directional", "lll", "hhh", "all", "detail"]


@dataclass(frozen=True)
class WaveletCoefficients:
    """A multi-level transform, coarsest level first as in PyWavelets.

    Attributes:
        approximation: ``(B, C, *coarsest)``, the low-pass band of the last level.
        details: One dictionary a level, coarsest first: band name -> ``(B, C, *band)``. A band is empty where
            an axis of that level has length one.
        wavelet: PyWavelets name of the basis.
    """

    approximation: Tensor
    details: tuple[dict[str, Tensor], ...]
    wavelet: str


def band_names(dim: int) -> tuple[str, ...]:
    """All band names of one level in ``dim`` dimensions, ``"aa..a"`` first."""
    return tuple("".join(letters) for letters in itertools.product("ad", repeat=dim))


def select_bands(bands: Bands, dim: int) -> frozenset[str]:
    """Names of the bands a selection keeps at one level.

    Args:
        bands: ``"directional"`` (mixed low and high pass: DCD's D), ``"lll"`` (approximation only), ``"hhh"``
            (high pass along every axis), ``"detail"`` (everything but the approximation), ``"all"``.
        dim: Number of spatial axes.

    Raises:
        ValueError: For an unknown selection.
    """
    if not isinstance(bands, str):
        raise ValueError(f"bands must be the name of a selection, got {bands!r}")
    names = set(band_names(dim))
    lowest, highest = "a" * dim, "d" * dim
    selections = {
        "directional": names - {lowest, highest},
        "lll": {lowest},
        "hhh": {highest},
        "detail": names - {lowest},
        "all": names,
    }
    if bands not in selections:
        raise ValueError(f"bands must be one of {sorted(selections)}, got {bands!r}")
    return frozenset(selections[bands])


_forget: list[Callable[[], None]] = []


def forget_constants() -> None:
    """Forget the results of all functions of :func:`constants`, such as those that were made of fake tensors."""
    for forget in _forget:
        forget()


def constants(maxsize: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Keep the tensors a function makes, for all later calls.

    They are ordinary ones, also where the first call is made under ``torch.inference_mode`` or another default device.

    Args:
        maxsize: Number of results that are kept.
    """

    def keeping(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @lru_cache(maxsize)
        @wraps(function)
        def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with torch.inference_mode(False), torch.device("cpu"):
                return function(*args, **kwargs)

        _forget.append(make.cache_clear)
        return cast(Callable[Arguments, Result], make)

    return keeping


@lru_cache(maxsize=64)
def _filters(wavelet: str) -> tuple[list[float], list[float]]:
    try:
        found = pywt.Wavelet(wavelet)
    except (TypeError, ValueError):  # the first for an empty name
        raise ValueError(
            f"unknown wavelet {wavelet!r}: give PyWavelets' name of an orthogonal one (haar, db4, sym4, coif1, ...)"
        ) from None
    if not found.orthogonal:
        raise ValueError(f"wavelet {wavelet!r} is not orthogonal: its details are no orthogonal projection")
    return found.dec_lo, found.dec_hi


@constants(maxsize=1024)
def analysis_matrix(length: int, wavelet: str = "db4") -> Tensor:
    """The orthonormal matrix of one axis, rows ordered low band first, in float64 on the CPU.

    Args:
        length: Number of samples along the axis, at least 1.
        wavelet: PyWavelets name of an orthogonal wavelet.

    Shape:
        ``(length, length)``; the first ``ceil(length / 2)`` rows are the low band.

    Raises:
        ValueError: For a length below 1 or a wavelet that is unknown or not orthogonal.
    """
    if length < 1:
        raise ValueError(f"an axis needs at least one sample, got {length}")
    low_filter, high_filter = _filters(wavelet)
    if length == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if length % 2:
        return _carry_last_sample(analysis_matrix(length - 1, wavelet))
    matrix = torch.zeros(length, length, dtype=torch.float64)
    half, taps = length // 2, len(low_filter)
    for k, (j, (low, high)) in itertools.product(range(half), enumerate(zip(low_filter, high_filter, strict=True))):
        sample = (2 * k + taps // 2 - j) % length
        matrix[k, sample] += low
        matrix[half + k, sample] += high
    # The filters are printed to some 1e-12, dmey is not even orthogonal to 1e-3: take the nearest orthonormal matrix.
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


def _carry_last_sample(even: Tensor) -> Tensor:
    """The matrix of an odd axis from that of the even axis one shorter."""
    length = even.shape[0] + 1
    half = (length + 1) // 2
    matrix = torch.zeros(length, length, dtype=even.dtype)
    matrix[: half - 1, :-1] = even[: half - 1]
    matrix[half - 1, -1] = 1
    matrix[half:, :-1] = even[half - 1 :]
    # A constant now maps to (sqrt 2, ..., sqrt 2, 1): rotate the low band, in the plane of that vector and of the
    # constant one, so that the next level sees a constant again.
    seen = torch.nn.functional.normalize(matrix[:half].sum(1), dim=0)
    constant = torch.full_like(seen, 1 / math.sqrt(half))
    cosine, bisector = seen @ constant, seen + constant
    rotation = torch.eye(half, dtype=even.dtype)
    rotation -= torch.outer(bisector, bisector) / (1 + cosine)
    rotation += 2 * torch.outer(constant, seen)
    matrix[:half] = rotation @ matrix[:half]
    return matrix


@constants(maxsize=1024)
def _band_matrix(length: int, wavelet: str, letter: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    full, half = analysis_matrix(length, wavelet), (length + 1) // 2
    rows: Tensor = full[:half] if letter == "a" else full[half:]
    return rows.to(device, dtype).contiguous()


def multiply_axis(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """``matrix`` applied along spatial axis ``axis`` of ``(B, C, *spatial)``, without moving the axis."""
    shape, position = x.shape, axis + 2
    new_shape = (*shape[:position], matrix.shape[0], *shape[position + 1 :])
    if 0 in shape or 0 in new_shape:
        return x.new_zeros(new_shape)
    if position == x.ndim - 1:
        return torch.mm(x.reshape(-1, shape[-1]), matrix.t()).view(new_shape)
    slabs = x.reshape(-1, shape[position], math.prod(shape[position + 1 :]))
    return torch.bmm(matrix.expand(slabs.shape[0], -1, -1), slabs).view(new_shape)


def _filter(x: Tensor, wavelet: str, letter: str, axis: int) -> Tensor:
    return multiply_axis(x, _band_matrix(x.shape[axis + 2], wavelet, letter, x.dtype, x.device), axis)


def _check(x: Tensor, wavelet: str, levels: int) -> int:
    """Number of spatial axes of a valid input."""
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"expected (B, C, *spatial) with one to three spatial axes, got shape {tuple(x.shape)}")
    if not x.is_floating_point() or x.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"wavelets are computed in float32 or float64, got {x.dtype}")
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 1:
        raise ValueError(f"levels must be a positive integer, got {levels!r}")
    _filters(wavelet)
    return x.ndim - 2


def dwt(x: Tensor, wavelet: str = "db4", levels: int = 1) -> WaveletCoefficients:
    """Separable orthonormal wavelet transform of every channel (DCD, eq. 2).

    Args:
        x: ``(B, C, *spatial)``, float32 or float64, one to three spatial axes of any size.
        wavelet: PyWavelets name of an orthogonal wavelet.
        levels: How often the low-pass band is split again. Levels beyond the size of an axis leave it alone.

    Raises:
        ValueError: For another number of axes, a half-precision input, fewer than one level, a wavelet that is
            unknown or not orthogonal.
    """
    dim = _check(x, wavelet, levels)
    details: list[dict[str, Tensor]] = []
    for _ in range(levels):
        level = {"": x}
        for axis in range(dim):
            level = {
                name + letter: _filter(part, wavelet, letter, axis) for name, part in level.items() for letter in "ad"
            }
        x = level.pop("a" * dim)
        details.append(level)
    return WaveletCoefficients(x, tuple(reversed(details)), wavelet)


def idwt(coefficients: WaveletCoefficients) -> Tensor:
    """Inverse of :func:`dwt`, exact to rounding.

    Shape:
        Returns ``(B, C, *spatial)`` of the tensor that was transformed.
    """
    x = coefficients.approximation
    for bands in coefficients.details:
        x = _merge({"a" * (x.ndim - 2): x, **bands}, coefficients.wavelet)
    return x


def _merge(level: dict[str, Tensor], wavelet: str) -> Tensor:
    """One level of synthesis: all bands of a level to the tensor they came from."""
    for axis in reversed(range(len(next(iter(level))))):
        merged = {}
        for name in {name[:-1] for name in level}:
            low, high = level[name + "a"], level[name + "d"]
            length = low.shape[axis + 2] + high.shape[axis + 2]
            from_low, from_high = (
                multiply_axis(part, _band_matrix(length, wavelet, letter, part.dtype, part.device).t(), axis)
                for letter, part in (("a", low), ("d", high))
            )
            merged[name] = from_low + from_high
        level = merged
    return level[""]


def project_details(x: Tensor, wavelet: str = "db4", levels: int = 1, bands: Bands = "directional") -> Tensor:
    """Orthogonal projection on the selected bands, ``P_D = IDWT o mask_D o DWT`` (DCD, eq. 6).

    ``P_D`` is symmetric and idempotent. Same arguments and errors as :func:`dwt` and :func:`select_bands`; at
    several levels ``"lll"`` keeps the coarsest approximation only.

    Shape:
        ``(B, C, *spatial)`` to the same.
    """
    keep = select_bands(bands, _check(x, wavelet, levels))
    transformed = dwt(x, wavelet, levels)
    lowest = "a" * (x.ndim - 2)
    approximation = transformed.approximation
    return idwt(
        WaveletCoefficients(
            approximation if lowest in keep else torch.zeros_like(approximation),
            tuple(
                {name: band if name in keep else torch.zeros_like(band) for name, band in level.items()}
                for level in transformed.details
            ),
            wavelet,
        )
    )


def selected_components(
    x: Tensor, wavelet: str = "db4", levels: int = 1, bands: Bands = "directional", each_level: bool = False
) -> list[list[Tensor]]:
    """The selected part of ``x`` in an orthonormal basis, transformed no further than the selection needs.

    Linear in ``x``. With ``each_level=False`` the squared norms of all components sum to
    ``||project_details(x)||^2`` (Parseval), and no inverse transform is needed. With ``each_level=True``, list
    ``l`` holds the selection of one level alone, out of the approximation that level starts from.
    Bands that are selected together are not parted: ``da`` stands for ``daa`` and ``dad``.

    Returns:
        One list a level, finest first, of tensors ``(B, C, *component)``.
    """
    return _components(x, wavelet, levels, select_bands(bands, _check(x, wavelet, levels)), each_level)


def _components(
    x: Tensor, wavelet: str, levels: int, keep: frozenset[str], each_level: bool, dense: int = 512
) -> list[list[Tensor]]:
    """:func:`selected_components`, one matrix product for all levels once ``x`` has at most ``dense`` voxels."""
    spatial = x.shape[2:]
    if spatial.numel() <= dense:
        matrix, rows = dense_matrix(spatial, wavelet, levels, keep, each_level, x.dtype, x.device)
        return [[part] for part in torch.split(x.flatten(2) @ matrix, rows, dim=2)]
    last = levels == 1
    wanted = keep if each_level or last else keep - {"a" * len(spatial)}
    components, approximation = _split(x, wavelet, "", wanted, approximation=not last)
    return [components] + ([] if last else _components(approximation, wavelet, levels - 1, keep, each_level, dense))


@constants(maxsize=256)
def dense_matrix(
    spatial: torch.Size,
    wavelet: str,
    levels: int,
    keep: frozenset[str],
    each_level: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, list[int]]:
    """The separable steps as one matrix (voxels, coefficients), and the number of coefficients of each level."""
    voxels = spatial.numel()
    impulses = torch.eye(voxels, dtype=torch.float64).view(voxels, 1, *spatial)
    selected = _components(impulses, wavelet, levels, keep, each_level, dense=0)
    columns = [part.flatten(1) for level in selected for part in level]
    rows = [sum(part[0].numel() for part in level) for level in selected]
    return torch.cat([torch.zeros(voxels, 0, dtype=torch.float64), *columns], dim=1).to(device, dtype), rows


def _split(
    x: Tensor, wavelet: str, prefix: str, wanted: Iterable[str], approximation: bool
) -> tuple[list[Tensor], Tensor]:
    """The wanted bands below ``prefix``, and the approximation where it is asked for and lies below it."""
    dim = x.ndim - 2
    below = [name for name in wanted if name.startswith(prefix)]
    whole = len(below) == 2 ** (dim - len(prefix))
    descend = approximation and "d" not in prefix
    components = [x] if whole else []
    if len(prefix) == dim or not (descend or (below and not whole)):
        return components, x
    lowest = x
    for letter in "ad":
        remaining = [] if whole else [name for name in below if name.startswith(prefix + letter)]
        further = descend and letter == "a"
        if remaining or further:
            part = _filter(x, wavelet, letter, len(prefix))
            found, reached = _split(part, wavelet, prefix + letter, remaining, further)
            components += [component for component in found if component.numel()]
            if further:
                lowest = reached
    return components, lowest
