"""Taking the weights of a smaller network from every r-th channel of a larger one.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024 (weight selection, uniform).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from nnunet_kd.pruning.heads import MappedHeads


def selected_weights(teacher: nn.Module, student: nn.Module, mapped: MappedHeads | None = None) -> dict[str, Tensor]:
    """Build a state dict for the student from the teacher's weights of the same names.

    Of ``N`` channels, those with the indices ``floor(i N / n)``, ``i < n``, are taken, along every axis that is longer
    in the teacher. For concatenated tensors this selects the same channels as for each tensor alone, so a layer reads
    the channels it read in the teacher. The weights of a layer that reads ``n`` of ``N`` channels are multiplied by
    ``N / n``, which keeps the magnitude of its sum if no normalisation follows.

    Args:
        teacher: A network with at least the student's widths.
        student: The same architecture with other widths; it can be on the meta device.
        mapped: How the student's outputs follow from the teacher's; ``None`` if they have the same classes.

    Raises:
        ValueError: If layers, kernels or classes differ, or if the student is wider.
    """
    given = teacher.state_dict()
    wanted = student.state_dict()
    other = other_layers(given, wanted)
    if other is not None:
        raise ValueError(other)
    inputs = _input_axes(student)
    if mapped is not None:
        given = {name: mapped.mixed(weight) if mapped.has(name) else weight for name, weight in given.items()}
    return {name: _selected(name, given[name], wanted[name].shape, inputs.get(name)) for name in wanted}


def other_layers(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> str | None:
    """Say in what the layers of two networks differ besides their widths; ``None`` if in nothing.

    Args:
        teacher: The weights of the larger network by name.
        student: Those of the smaller one, which can be on the meta device.
    """
    if teacher.keys() != student.keys():
        name = min(teacher.keys() ^ student.keys())
        where = "teacher" if name in teacher else "student"
        why = ": stages of equal width have no projection between them" if ".skip." in name else ""
        return f"the student has other layers than the teacher: only the {where} has {name}{why}"
    for name, weight in student.items():
        if teacher[name].shape[2:] != weight.shape[2:] or teacher[name].dim() != weight.dim():
            sizes = f"{list(weight.shape)} cannot be taken from the teacher's {list(teacher[name].shape)}"
            return f"the student's {name} {sizes}"
    return None


def channels_taken(has: int, wants: int) -> Tensor:
    """Return the indices of the ``wants`` channels that a student takes from the teacher's ``has``."""
    return torch.arange(wants) * has // wants


def _input_axes(network: nn.Module) -> Mapping[str, int]:
    """Map the name of each weight to the axis that its layer sums over."""
    axes = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvTransposeNd):
            axes[f"{name}.weight"] = 0
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            axes[f"{name}.weight"] = 1
    return axes


def _selected(name: str, weight: Tensor, shape: torch.Size, input_axis: int | None) -> Tensor:
    if any(has < wants for has, wants in zip(weight.shape, shape, strict=True)):
        raise ValueError(f"the student's {name} {list(shape)} cannot be taken from the teacher's {list(weight.shape)}")
    selected = weight
    for axis, (has, wants) in enumerate(zip(weight.shape, shape, strict=True)):
        if has != wants:
            selected = selected.index_select(axis, channels_taken(has, wants).to(weight.device))
    if input_axis is not None:
        selected = selected * (weight.shape[input_axis] / shape[input_axis])
    return selected.clone()
