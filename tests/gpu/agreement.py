"""How well numbers of a device agree with those of a reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def error(ours: Tensor | Sequence[Tensor], reference: Tensor | Sequence[Tensor]) -> float:
    """Return the length of the difference of two tensors, or lists of tensors, relative to the reference's length."""
    pairs = [(ours, reference)] if isinstance(ours, Tensor) else list(zip(ours, reference, strict=True))
    doubles = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in pairs]
    difference = sum(float((a - b).square().sum()) for a, b in doubles)
    length = sum(float(b.square().sum()) for _, b in doubles)
    return (difference / length) ** 0.5


def worst_error(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the largest :func:`error` of the tensors of a list, those without a length left out."""
    return max(error(a, b) for a, b in zip(ours, reference, strict=True) if bool(b.detach().abs().max() > 0))


def cosine(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the cosine of the angle between two lists of tensors, each taken as one vector."""
    doubles = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(ours, reference, strict=True)]
    product = sum(float((a * b).sum()) for a, b in doubles)
    lengths = [sum(float(one.square().sum()) for one in side) for side in zip(*doubles, strict=True)]
    return product / (lengths[0] * lengths[1]) ** 0.5
