"""The stages of encoders and decoders, and matching those of two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class EncoderStages:
    """The widths and strides of an encoder's stages.

    Attributes:
        widths: The number of channels of each stage, highest resolution first.
        strides: The number of input voxels per feature voxel of each stage, one per axis (z, y, x).
        patch: The size of the training's patches in voxels; ``None`` if it is not known.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...] | None = None

    @property
    def grids(self) -> list[tuple[int, ...]] | None:
        """The size of each stage's features on a patch; ``None`` if its size is not known."""
        if self.patch is None:
            return None
        return [tuple(-(-side // step) for side, step in zip(self.patch, steps, strict=True)) for steps in self.strides]

    @property
    def dim(self) -> int:
        """The number of spatial axes."""
        return len(self.strides[0])


def has_encoder_stages(network: nn.Module) -> bool:
    """Return whether the network has nnU-Net's encoder interface."""
    encoder = getattr(network, "encoder", None)
    return hasattr(encoder, "output_channels") and hasattr(encoder, "strides")


def encoder_stages(network: nn.Module) -> EncoderStages:
    """Return the encoder stages of a network with nnU-Net's encoder interface.

    Raises:
        NotImplementedError: If the network lacks ``encoder.output_channels`` or ``encoder.strides``.
    """
    if not has_encoder_stages(network):
        raise NotImplementedError(
            f"{type(network).__name__} has no encoder that lists output_channels and strides: "
            "its features cannot be distilled"
        )
    encoder: Any = network.encoder
    cumulative: list[tuple[int, ...]] = []
    for stride in encoder.strides:
        before = cumulative[-1] if cumulative else (1,) * len(stride)
        cumulative.append(tuple(int(a * b) for a, b in zip(before, stride, strict=True)))
    return EncoderStages(tuple(int(width) for width in encoder.output_channels), tuple(cumulative))


def decoder_stages(network: nn.Module) -> list[nn.Module]:
    """Return the decoder stages of a network with nnU-Net's interface, lowest resolution first.

    Each stage has the width of the encoder stage at its resolution. nnU-Net's decoders have no stage at the lowest
    resolution; a network that has one, such as VM-UNet, calls it ``decoder.bottleneck``.

    Raises:
        NotImplementedError: If the network lacks ``decoder.stages`` with one stage per encoder stage but the deepest.
    """
    decoder = getattr(network, "decoder", None)
    stages = getattr(decoder, "stages", None)
    if not isinstance(stages, nn.ModuleList) or len(stages) != len(encoder_stages(network).widths) - 1:
        raise NotImplementedError(
            f"{type(network).__name__} has no decoder.stages, one for each encoder stage but the deepest: "
            "its decoder's features cannot be distilled"
        )
    bottleneck = getattr(decoder, "bottleneck", None)
    return [*([] if bottleneck is None else [bottleneck]), *stages]


def match_stages(student: EncoderStages, teacher: EncoderStages) -> list[tuple[int, int]]:
    """Return the pairs (student stage, teacher stage) on the same grid, highest resolution first.

    If several stages of a network share a grid, the last of them is paired.

    Raises:
        ValueError: If no stage of the student has the grid of a teacher's stage.
    """
    by_grid = {stride: index for index, stride in enumerate(teacher.strides)}
    last = {stride: index for index, stride in enumerate(student.strides)}
    pairs = [(index, by_grid[stride]) for stride, index in last.items() if stride in by_grid]
    if not pairs:
        raise ValueError(
            f"no encoder stage of the student ({student.strides}) has the grid of one of the teacher's "
            f"({teacher.strides})"
        )
    return pairs
