"""What every loss on feature maps asks of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def check_features(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> None:
    """Refuse features that cannot be compared.

    Raises:
        ValueError: Unless both are ``(B, C, *spatial)`` with two or three spatial axes, the same batch and the
            same grid, and, without a projection, the same width.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        if features.ndim not in (4, 5):
            raise ValueError(f"expected {name} features (B, C, *spatial) in 2-D or 3-D, got {tuple(features.shape)}")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"student has batch size {student.shape[0]}, teacher {teacher.shape[0]}")
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"student features lie on {tuple(student.shape[2:])}, teacher's on {tuple(teacher.shape[2:])}")
    if projection is None and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student has {student.shape[1]} channels, teacher {teacher.shape[1]}: give a projection between them"
        )


def is_pointwise(projection: nn.Module | None) -> TypeGuard[_ConvNd]:
    """Whether this is a plain 1x1(x1) convolution, which commutes with every linear map of the spatial axes."""
    return (
        isinstance(projection, nn.Conv2d | nn.Conv3d)
        and set(projection.kernel_size) == {1}
        and set(projection.stride) == {1}
        and projection.groups == 1
        and all(not padding for padding in projection.padding)
    )


@contextmanager
def in_single_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in their common floating type, float32 at least, with autocast off inside."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.to(dtype) for tensor in tensors)
