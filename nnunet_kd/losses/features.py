"""What the losses ask of their inputs, and the adapters between widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_kd.wavelets import analysis_matrix

MOST_LEVELS = 20  # of an axis of a million voxels


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
    """:func:`check_pair`, and the widths: without a projection the same, otherwise those it was made for.

    Raises:
        ValueError: For features that cannot be compared.
    """
    check_pair(student, teacher)
    if projection is None and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student has {student.shape[1]} channels, teacher {teacher.shape[1]}: give a projection between them"
        )
    if is_pointwise(projection):
        made_for = (projection.in_channels, projection.out_channels, projection.weight.ndim - 2)
        got = (student.shape[1], teacher.shape[1], student.ndim - 2)
        if made_for != got:
            raise ValueError(
                "the projection goes from {} to {} channels in {}-D".format(*made_for)
                + ", the features have {} and {} in {}-D".format(*got)
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


def check_classes(classes: Tensor, features: Tensor) -> None:
    """Refuse what cannot be the classes of the voxels of features.

    Raises:
        ValueError: Unless they are whole numbers ``(B, *spatial)``.
    """
    if classes.ndim != features.ndim - 1 or classes.shape[0] != features.shape[0] or classes.is_floating_point():
        raise ValueError(
            f"classes must be whole numbers (B, *spatial) with batch size {features.shape[0]}, "
            f"got {classes.dtype} {tuple(classes.shape)}"
        )


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


def in_type_of(tensor: Tensor, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module, its parameters taken to the floating type of the tensor where they are of another."""
    state = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    converted = {name: entry.to(tensor.dtype) for name, entry in state.items() if entry.is_floating_point()}
    if all(entry is state[name] for name, entry in converted.items()):
        return module
    return lambda features: torch.func.functional_call(module, converted, (features,))


def projected(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
    """The student's features at the teacher's width, of tensors that :func:`check_features` let pass.

    Raises:
        ValueError: For a projection that leads elsewhere.
    """
    if projection is None:
        return student
    student = in_type_of(student, projection)(student)
    if student.shape != teacher.shape:
        raise ValueError(f"the projection makes the student {tuple(student.shape)}, teacher is {tuple(teacher.shape)}")
    return student


def check_number(name: str, value: object, positive: bool = True) -> None:
    """Refuse what is no finite number above 0, or not below 0 where ``positive`` is false, of those float32 holds.

    Raises:
        ValueError: Naming the option.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not number or value < 0 or (positive and value == 0):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number {'above 0' if positive else 'of at least 0'}, got {value!r}")
    single = torch.finfo(torch.float32)
    if value > single.max or (positive and value < single.tiny):  # type: ignore[operator]
        raise ValueError(f"{name} must be within single precision, got {value!r}")


def check_count(name: str, value: object, most: int) -> None:
    """Refuse what is no whole number from 1 to ``most``.

    Raises:
        ValueError: Naming the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def check_temperature(temperature: object) -> None:
    """Refuse what is no temperature logits can be compared at.

    Raises:
        ValueError: For what is no number from 0.001 to 1000. At higher temperatures all probabilities agree to the last
            digits of float32, and T^2 times their divergence is T^2 times its rounding.
    """
    check_number("temperature", temperature)
    if not 0.001 <= temperature <= 1000:  # type: ignore[operator]
        raise ValueError(f"temperature must be from 0.001 to 1000, got {temperature!r}")


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


def single_precision(*tensors: Tensor) -> torch.dtype:
    """The common floating type of the tensors, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


@contextmanager
def in_single_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in their common floating type, float32 at least, with autocast off inside."""
    dtype = single_precision(*tensors)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.to(dtype) for tensor in tensors)
