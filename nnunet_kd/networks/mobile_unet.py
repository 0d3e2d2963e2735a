"""Mobile U-Net: nnU-Net's U-Net with depthwise-separable blocks, for small students in 2-D and 3-D.

The blocks are those of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_batchnorm,
    maybe_convert_scalar_to_list,
)
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    r"""An inverted residual with a linear bottleneck (MobileNetV2, section 3.3), with all its convolutions unbiased.

    .. math:: y = B\{P(\sigma(B\{D(\sigma(B\{E(x)\}))\}))\} \; (+\, x)

    with a 1x1 convolution E that widens, a depthwise convolution D, a 1x1 convolution P that narrows, normalisation B
    and ReLU :math:`\sigma`. x is added if it has the shape of y. Without widening, E is left out, as in the paper. The
    paper has ReLU6, for whose gradient PyTorch would keep a further copy of the features.

    Args:
        inputs: The number of channels of x.
        outputs: The number of channels of y.
        hidden: The number of channels of the depthwise convolution.
        conv_op: The class of 2-D or 3-D convolutions.
        kernel_size: The kernel size of D, one odd number per axis.
        stride: The stride of D, one number per axis.
        norm_op: The class of the normalisation B.
        norm_op_kwargs: The keyword arguments of the normalisation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        conv_op: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        padding = [size // 2 for size in kernel_size]
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += [conv_op(inputs, hidden, 1, bias=False), norm_op(hidden, **norm_op_kwargs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(
            *layers,
            conv_op(hidden, hidden, tuple(kernel_size), tuple(stride), padding, groups=hidden, bias=False),
            norm_op(hidden, **norm_op_kwargs),
            nn.ReLU(inplace=True),
            conv_op(hidden, outputs, 1, bias=False),
            norm_op(outputs, **norm_op_kwargs),
        )
        self.adds = inputs == outputs and all(step == 1 for step in stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, *spatial)`` to ``(B, outputs, *spatial / stride)``."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class _Encoder(nn.Module):
    """An encoder with nnU-Net's interface; ``forward`` returns the features of all stages, finest first."""

    def __init__(
        self,
        input_channels: int,
        output_channels: list[int],
        conv_op: Any,
        kernel_sizes: list[list[int]],
        strides: list[list[int]],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any],
        blocks: list[int],
        expansions: list[int],
    ) -> None:
        super().__init__()
        self.output_channels, self.strides, self.kernel_sizes = output_channels, strides, kernel_sizes
        self.conv_op, self.conv_bias = conv_op, True
        self.norm_op, self.norm_op_kwargs = norm_op, norm_op_kwargs
        self.dropout_op = self.dropout_op_kwargs = None
        self.nonlin, self.nonlin_kwargs = nn.ReLU, {"inplace": True}
        stages = []
        before = input_channels
        for number, (width, kernel, stride) in enumerate(zip(output_channels, kernel_sizes, strides, strict=True)):
            parts: list[nn.Module] = []
            if number == 0:
                padding = [size // 2 for size in kernel]
                parts += [
                    conv_op(before, width, tuple(kernel), tuple(stride), padding, bias=False),
                    norm_op(width, **norm_op_kwargs),
                    nn.ReLU(inplace=True),
                ]
                before, stride = width, [1] * len(stride)
            for block in range(blocks[number]):
                hidden = before * expansions[number if block > 0 else max(number - 1, 0)]  # that of the grid it reads
                parts.append(InvertedResidual(before, width, hidden, conv_op, kernel, stride, norm_op, norm_op_kwargs))
                before, stride = width, [1] * len(stride)
            stages.append(nn.Sequential(*parts))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MobileUNet(nn.Module):
    """Mobile U-Net in 2-D or 3-D, which the plans name ``nnunet_kd.networks.mobile_unet.MobileUNet``.

    Every encoder stage consists of :class:`InvertedResidual` blocks, whose first one has the stride of the stage; the
    finest stage begins with a convolution. Blocks widen less on the finest grids, which have most of the voxels: those
    that read the finest not at all, those that read the next by at most 2. The decoder is nnU-Net's, with transposed
    convolutions, skip connections and deep supervision, but with one :class:`InvertedResidual` per stage.

    nnU-Net's widths divided by 4 (8, 16, 32, 64, 80, 80) give it 0.6 M parameters in 3-D with 16 classes.

    Args:
        input_channels: The number of channels of the images.
        num_classes: The number of output channels.
        n_stages: The number of encoder stages.
        features_per_stage: The width of every stage, or of the first one, which then doubles with every stage.
        conv_op: ``torch.nn.Conv2d`` or ``Conv3d``.
        kernel_sizes: One number, or a list with one number per axis for every stage.
        strides: The strides of every stage in the form of the kernel sizes; the first is usually 1. A single number is
            the stride of all stages but the first.
        norm_op: The class of the normalisation; ``None`` for batch normalisation, as published.
        norm_op_kwargs: The keyword arguments of the normalisation.
        deep_supervision: Whether to return logits at several scales, finest first.
        blocks_per_stage: The number of blocks of every encoder stage; a single number is that of all stages but the
            finest, which then has one.
        expansion: The factor by which blocks widen their input (in the decoder, their output), from the third grid on.

    Shape:
        ``(B, input_channels, *spatial)`` to ``(B, num_classes, *spatial)``, with sizes divisible by the product of the
        strides; under deep supervision a list with the logits of every scale but the coarsest.

    Raises:
        ValueError: If the numbers of stages disagree, if a kernel size is even, or if a number is below 1.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int = 6,
        features_per_stage: int | Sequence[int] = 8,
        conv_op: Any = nn.Conv3d,
        kernel_sizes: int | Sequence[Sequence[int]] = 3,
        strides: int | Sequence[Sequence[int]] = 2,
        norm_op: Any = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        blocks_per_stage: int | Sequence[int] = 2,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        if isinstance(features_per_stage, int):
            features_per_stage = [features_per_stage * 2**stage for stage in range(n_stages)]
        if isinstance(strides, int):
            strides = [[1 if stage == 0 else strides] * convert_conv_op_to_dim(conv_op) for stage in range(n_stages)]
        if isinstance(kernel_sizes, int):
            kernel_sizes = [[kernel_sizes] * convert_conv_op_to_dim(conv_op)] * n_stages
        if isinstance(blocks_per_stage, int):
            blocks_per_stage = [1, *[blocks_per_stage] * (n_stages - 1)]
        for name, given in (
            ("features", features_per_stage),
            ("kernel_sizes", kernel_sizes),
            ("strides", strides),
            ("blocks", blocks_per_stage),
        ):
            if len(given) != n_stages:
                raise ValueError(f"{n_stages} stages need as many {name}, got {len(given)}")
        kernels = [list(maybe_convert_scalar_to_list(conv_op, kernel)) for kernel in kernel_sizes]
        if any(size % 2 == 0 for kernel in kernels for size in kernel):
            raise ValueError("kernel sizes must be odd, since even ones change the size of the image")
        if min(*blocks_per_stage, expansion) < 1:
            raise ValueError(
                f"blocks_per_stage and expansion must be at least 1, got {list(blocks_per_stage)} and {expansion}"
            )
        expansions = [min(2**stage, expansion) for stage in range(n_stages)]
        self.encoder = encoder = _Encoder(
            input_channels,
            list(features_per_stage),
            conv_op,
            kernels,
            [list(maybe_convert_scalar_to_list(conv_op, stride)) for stride in strides],
            get_matching_batchnorm(conv_op) if norm_op is None else norm_op,
            norm_op_kwargs or {},
            list(blocks_per_stage),
            expansions,
        )
        self.decoder = UNetDecoder(encoder, num_classes, 1, deep_supervision)
        norm = (encoder.norm_op, encoder.norm_op_kwargs)
        skips = list(zip(encoder.output_channels, encoder.kernel_sizes, expansions, strict=True))[-2::-1]
        self.decoder.stages = nn.ModuleList(
            InvertedResidual(2 * width, width, max(factor, 2) * width, conv_op, kernel, [1] * len(kernel), *norm)
            for width, kernel, factor in skips
        )

    def forward(self, x: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialize a convolution as nnU-Net's own networks do; nnU-Net calls this."""
        InitWeights_He(1e-2)(module)
