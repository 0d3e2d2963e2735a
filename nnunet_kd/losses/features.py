"""What the losses ask of their inputs, and the adapters between widths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_kd.wavelets import analysis_matrix


def check_pair(student: Tensor, teacher: Tensor, what: str = "features") -> None:
    """Refuse tensors that do not lie on the same grid.

    Raises:
        ValueError: Unless both are ``(B, C, *spatial)`` with two or three spatial axes, the same batch and the
            same grid.
    """
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.ndim not in (4, 5):
            raise ValueError(f"expected {name} {what} (B, C, *spatial) in 2-D or 3-D, got {tuple(tensor.shape)}")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"student has batch size {student.shape[0]}, teacher {teacher.shape[0]}")
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"student {what} lie on {tuple(student.shape[2:])}, teacher's on {tuple(teacher.shape[2:])}")


def check_features(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> None:
    """:func:`check_pair`, and without a projection the same width.

    Raises:
        ValueError: For features that cannot be compared.
    """
    check_pair(student, teacher)
    if projection is None and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student has {student.shape[1]} channels, teacher {teacher.shape[1]}: give a projection between them"
        )


def check_logits(student: Tensor, teacher: Tensor, valid: Tensor | None) -> None:
    """:func:`check_pair`, the same classes, and a mask that covers them.

    Raises:
        ValueError: For logits that cannot be compared, or a mask that is not boolean ``(B, 1, *spatial)``.
    """
    check_pair(student, teacher, "logits")
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"student has {student.shape[1]} classes, teacher {teacher.shape[1]}")
    expected = (student.shape[0], 1, *student.shape[2:])
    if valid is not None and (valid.shape != expected or valid.dtype != torch.bool):
        raise ValueError(f"valid must be boolean {expected}, got {valid.dtype} {tuple(valid.shape)}")


def pointwise_convolution(inputs: int, outputs: int, dim: int, bias: bool) -> nn.Module:
    """The usual adapter: a 1x1(x1) convolution from student to teacher width."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[dim](inputs, outputs, 1, bias=bias)


def is_pointwise(projection: nn.Module | None) -> TypeGuard[_ConvNd]:
    """Whether this is a plain 1x1(x1) convolution, which commutes with every linear map of the spatial axes."""
    return (
        isinstance(projection, nn.Conv2d | nn.Conv3d)
        and set(projection.kernel_size) == {1}
        and set(projection.stride) == {1}
        and projection.groups == 1
        and all(not padding for padding in projection.padding)
    )


def check_number(name: str, value: object, positive: bool = True) -> None:
    """Refuse what is no finite number above 0, or not below 0 where ``positive`` is false.

    Raises:
        ValueError: Naming the option.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not number or value < 0 or (positive and value == 0):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number {'above 0' if positive else 'of at least 0'}, got {value!r}")


def check_wavelet(wavelet: object) -> None:
    """Refuse what is not the name of an orthogonal wavelet.

    Raises:
        ValueError: Naming the option.
    """
    if not isinstance(wavelet, str):
        raise ValueError(f"wavelet must be a name such as 'db4', got {wavelet!r}")
    analysis_matrix(2, wavelet)


def energy(tensor: Tensor) -> Tensor:
    """Sum of squares, in one pass over the tensor and nothing kept but its rows' norms.

    Row by row, because a single float32 sum over a feature map of usual size is wrong in its fourth digit.
    """
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=-1)
    return norms.square().sum()


@contextmanager
def in_single_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in their common floating type, float32 at least, with autocast off inside."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.to(dtype) for tensor in tensors)
