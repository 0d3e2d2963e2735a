"""What the U-Nets of this package share: nnU-Net's encoder interface and decoder around blocks of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_batchnorm,
    maybe_convert_scalar_to_list,
)
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn


@dataclass(frozen=True)
class Stages:
    """What the stages of an encoder have in common, finest first.

    Attributes:
        conv_op: The class of 2-D or 3-D convolutions.
        widths: The number of channels of every stage.
        kernel_sizes: The kernel size of every stage, one odd number per axis.
        strides: The stride of every stage, one number per axis.
        norm_op: The class of the normalisation.
        norm_op_kwargs: The keyword arguments of the normalisation.
    """

    conv_op: Any
    widths: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    norm_op: Any
    norm_op_kwargs: dict[str, Any]

    @classmethod
    def read(
        cls,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: Any,
        kernel_sizes: int | Sequence[Sequence[int]],
        strides: int | Sequence[Sequence[int]],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any] | None,
    ) -> Stages:
        """Complete the arguments of a network, as nnU-Net's plans give them.

        Args:
            n_stages: The number of stages.
            features_per_stage: The width of every stage, or of the first one, which then doubles with every stage.
            conv_op: ``torch.nn.Conv2d`` or ``Conv3d``.
            kernel_sizes: One number, or a list with one number per axis for every stage.
            strides: The strides of every stage in the form of the kernel sizes. A single number is the stride of all
                stages but the first.
            norm_op: The class of the normalisation; ``None`` for batch normalisation.
            norm_op_kwargs: The keyword arguments of the normalisation.

        Raises:
            ValueError: If the numbers of stages disagree, or if a kernel size is even.
        """
        axes = convert_conv_op_to_dim(conv_op)
        if isinstance(features_per_stage, int):
            features_per_stage = [features_per_stage * 2**stage for stage in range(n_stages)]
        if isinstance(strides, int):
            strides = [[1 if stage == 0 else strides] * axes for stage in range(n_stages)]
        if isinstance(kernel_sizes, int):
            kernel_sizes = [[kernel_sizes] * axes] * n_stages
        require_stages(n_stages, features=features_per_stage, kernel_sizes=kernel_sizes, strides=strides)
        kernels = [list(maybe_convert_scalar_to_list(conv_op, kernel)) for kernel in kernel_sizes]
        require_odd(size for kernel in kernels for size in kernel)
        return cls(
            conv_op,
            list(features_per_stage),
            kernels,
            [list(maybe_convert_scalar_to_list(conv_op, stride)) for stride in strides],
            get_matching_batchnorm(conv_op) if norm_op is None else norm_op,
            norm_op_kwargs or {},
        )


def require_stages(n_stages: int, **given: Sequence[Any]) -> None:
    """Raise ``ValueError`` if a list has not one entry per stage."""
    for name, entries in given.items():
        if len(entries) != n_stages:
            raise ValueError(f"{n_stages} stages need as many {name}, got {len(entries)}")


def require_odd(kernel_sizes: Iterable[int]) -> None:
    """Raise ``ValueError`` if a kernel size is even."""
    if any(size % 2 == 0 for size in kernel_sizes):
        raise ValueError("kernel sizes must be odd, since even ones change the size of the image")


class Encoder(nn.Module):
    """An encoder with nnU-Net's interface; ``forward`` returns the features of all stages, finest first.

    Args:
        common: What the stages have in common.
        stages: The module of every stage, finest first.
    """

    def __init__(self, common: Stages, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.output_channels, self.strides, self.kernel_sizes = common.widths, common.strides, common.kernel_sizes
        self.conv_op, self.conv_bias = common.conv_op, True
        self.norm_op, self.norm_op_kwargs = common.norm_op, common.norm_op_kwargs
        self.dropout_op = self.dropout_op_kwargs = None
        self.nonlin, self.nonlin_kwargs = nn.ReLU, {"inplace": True}
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class UNetOfBlocks(nn.Module):
    """nnU-Net's U-Net with other blocks: an encoder, and nnU-Net's decoder with one block per stage.

    Args:
        encoder: The encoder.
        num_classes: The number of output channels.
        deep_supervision: Whether to return logits at several scales, finest first.
        block: Makes the block of a decoder stage from the number of the encoder stage of the same grid. The block maps
            ``(B, 2 C, *spatial)`` to ``(B, C, *spatial)``.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, deep_supervision: bool, block: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = UNetDecoder(encoder, num_classes, 1, deep_supervision)
        self.decoder.stages = nn.ModuleList(block(stage) for stage in reversed(range(len(encoder.stages) - 1)))

    def forward(self, x: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialize a convolution as nnU-Net's own networks do; nnU-Net calls this."""
        InitWeights_He(1e-2)(module)
