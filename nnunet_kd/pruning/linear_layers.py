"""Convolutions of teacher and student as linear maps from the input at a position to the output there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_kd.pruning.hooks import hooks
from nnunet_kd.pruning.selection import channels_taken

Places = tuple[Tensor, ...]  # image indices and coordinates of positions, the same for both networks


@dataclass(frozen=True)
class LinearLayer(ABC):
    """A layer that both networks have, as a linear map.

    Attributes:
        name: The module's name.
        number: The index of the layer in running order.
        teacher: The teacher's module.
        student: The student's module.
        is_output: Whether its output is an output of the network.
        norm: The student's batch normalisation of the layer's output, if it runs right after the layer.
        size: The size of the student's output, ``(*spatial)``.
    """

    name: str
    number: int
    teacher: Any
    student: Any
    is_output: bool = False
    norm: Any = None
    size: tuple[int, ...] = ()

    @abstractmethod
    def reads(self, images: Tensor, places: Places) -> Tensor:
        """Return the inputs of the map at the given places of the layer's input.

        Shape:
            ``(B, channels, *spatial)`` to ``(positions, inputs)``.
        """

    @abstractmethod
    def gives(self, output: Tensor, places: Places) -> Tensor:
        """Return the map's outputs ``(positions, outputs)`` at places of an output ``(B, channels, *spatial)``."""

    @property
    @abstractmethod
    def grid(self) -> Sequence[int]:
        """The size of the student's grid of positions."""

    @abstractmethod
    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Set the student's map ``(inputs, outputs)`` and its intercepts."""

    def shift(self, bias: Tensor) -> None:
        """Set the intercepts ``(channels,)``; without a bias, the normalisation subtracts that much less."""
        if self.student.bias is not None:
            self.student.bias.copy_(bias)
        elif self.norm is not None:
            self.norm.running_mean.sub_(bias.to(self.norm.running_mean))

    def taught(self, output: Tensor) -> Tensor:
        """Return what the student's layer is fitted to: its channels of the teacher's output, on its own grid."""
        own = output.index_select(1, channels_taken(output.shape[1], self.student.out_channels).to(output.device))
        if tuple(output.shape[2:]) == self.size:
            return own
        mode = ("linear", "bilinear", "trilinear")[len(self.size) - 1]
        return F.interpolate(own, self.size, mode=mode, align_corners=False)


class Convolution(LinearLayer):
    """A convolution, which maps windows of its input to voxels."""

    def reads(self, images: Tensor, places: Places) -> Tensor:
        padded = F.pad(images, [width for width in reversed(self.student.padding) for _ in range(2)])
        return _windows(padded, places, self.student.kernel_size, self.student.stride, self.student.dilation)

    def gives(self, output: Tensor, places: Places) -> Tensor:
        return _windows(output, places, *[(1,) * (output.dim() - 2)] * 3)

    @property
    def grid(self) -> Sequence[int]:
        return self.size

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        self.student.weight.copy_(weight.T.reshape(self.student.weight.shape))
        self.shift(bias)


class TransposedConvolution(LinearLayer):
    """A transposed convolution, which maps voxels to windows that do not overlap."""

    def reads(self, images: Tensor, places: Places) -> Tensor:
        return _windows(images, places, *[(1,) * (images.dim() - 2)] * 3)

    def gives(self, output: Tensor, places: Places) -> Tensor:
        kernel = self.student.kernel_size
        return _windows(output, places, kernel, kernel, (1,) * len(kernel))

    @property
    def grid(self) -> Sequence[int]:
        return [side // width for side, width in zip(self.size, self.student.kernel_size, strict=True)]

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        self.student.weight.copy_(weight.reshape(self.student.weight.shape))
        self.shift(bias.reshape(self.student.out_channels, -1).mean(1))


def linear_layers(teacher: nn.Module, student: nn.Module, images: Tensor) -> list[LinearLayer]:
    """List the layers that can be fitted, in the order in which they run.

    These are the convolutions that run once and have no groups. Transposed convolutions must have strides equal to
    their kernel sizes.

    Args:
        teacher: A network with the same layers.
        student: The network that runs.
        images: The images to run, ``(B, channels, *spatial)``.
    """
    ran: list[str] = []
    gave: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: Any, _read: Any, output: Any) -> None:
            ran.append(name)
            gave[name] = output

        return hook

    own, given = dict(student.named_modules()), dict(teacher.named_modules())
    with hooks(module.register_forward_hook(note(name)) for name, module in own.items()):
        outputs = student(images)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    layers: list[LinearLayer] = []
    for name, following in zip(ran, [*ran[1:], ""], strict=True):
        kind = _kind(own[name])
        if kind is not None and ran.count(name) == 1:
            is_output = any(gave[name] is output for output in outputs)
            norm = own[following] if _subtracts_mean(own[following]) and ran.count(following) == 1 else None
            size = tuple(gave[name].shape[2:])
            layers.append(kind(name, len(layers), given[name], own[name], is_output, norm, size))
    return layers


def _kind(layer: Any) -> type[LinearLayer] | None:
    """Return the class for a layer as a linear map, or ``None`` if the layer cannot be fitted."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        fits = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return Convolution if fits else None
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        apart = layer.stride == layer.kernel_size and {*layer.padding, *layer.output_padding} == {0}
        return TransposedConvolution if apart and layer.groups == 1 and {*layer.dilation} == {1} else None
    return None


def _subtracts_mean(module: nn.Module) -> bool:
    """Return whether a module subtracts a running mean in evaluation mode."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _windows(
    tensor: Tensor, places: Places, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return windows of a tensor ``(B, channels, *spatial)`` at places, ``(positions, channels * voxels)``."""
    image, *coordinates = places
    offsets = torch.meshgrid(*(torch.arange(size, device=image.device) for size in kernel), indexing="ij")
    where = [
        coordinate[:, None] * step + spread * offset.flatten()
        for coordinate, step, spread, offset in zip(coordinates, stride, dilation, offsets, strict=True)
    ]
    everywhere = (image[:, None], *where)
    windows = tensor.movedim(1, -1)[everywhere]  # (positions, voxels, channels)
    return windows.transpose(1, 2).flatten(1)
