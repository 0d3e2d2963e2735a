"""Starting weights of a student: every k-th channel of its teacher.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024 (weight selection, uniform).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

MANY = 2**20

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # shows work; takes it and how much it is


def selected_weights(teacher: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """A state dict of the student, each weight taken from the teacher's of the same name.

    Of ``N`` channels those numbered ``floor(i N / n)``, ``i < n``, are taken, along every axis that is longer in the
    teacher. Two tensors that are joined along their channels are thinned the same alone and joined, so a layer reads
    the channels it read in the teacher. A layer that reads ``n`` of ``N`` channels has its weights multiplied by
    ``N / n``, so that a sum over channels keeps its size where no normalisation follows.

    Args:
        teacher: A network with at least the student's widths.
        student: The same network but for its widths; may be on the meta device.

    Raises:
        ValueError: Where layers, kernels or classes differ, or the student is wider.
    """
    given = teacher.state_dict()
    wanted = student.state_dict()
    if given.keys() != wanted.keys():
        name = min(given.keys() ^ wanted.keys())
        where = "teacher" if name in given else "student"
        why = ": stages of equal width have no projection between them" if ".skip." in name else ""
        raise ValueError(f"the student has other layers than the teacher: only the {where} has {name}{why}")
    inputs = _input_axes(student)
    return {name: _selected(name, given[name], wanted[name].shape, inputs.get(name)) for name in wanted}


def channels_taken(has: int, wants: int) -> Tensor:
    """Numbers of the teacher's channels a student has."""
    return torch.arange(wants) * has // wants


def draw(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Numbers below ``count``, ``wanted`` of them or all.

    All different where there are few to draw from. Of many they are drawn one by one: a permutation of a batch's voxels
    takes a second.
    """
    if count > MANY:
        return torch.randint(count, (wanted,), generator=generator)
    return torch.randperm(count, generator=generator)[:wanted]


def in_double(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where its device (Apple's GPUs) has no such type."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _input_axes(network: nn.Module) -> Mapping[str, int]:
    """Name of a weight -> the axis its layer sums over."""
    axes = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvTransposeNd):
            axes[f"{name}.weight"] = 0
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            axes[f"{name}.weight"] = 1
    return axes


def _selected(name: str, weight: Tensor, shape: torch.Size, input_axis: int | None) -> Tensor:
    fits = weight.dim() == len(shape) and weight.shape[2:] == shape[2:]
    if not fits or any(has < wants for has, wants in zip(weight.shape, shape, strict=True)):
        raise ValueError(f"the student's {name} {list(shape)} cannot be taken from the teacher's {list(weight.shape)}")
    selected = weight
    for axis, (has, wants) in enumerate(zip(weight.shape, shape, strict=True)):
        if has != wants:
            selected = selected.index_select(axis, channels_taken(has, wants).to(weight.device))
    if input_axis is not None:
        selected = selected * (weight.shape[input_axis] / shape[input_axis])
    return selected.clone()
