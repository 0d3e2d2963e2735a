"""Mobile U-Net: nnU-Net's U-Net with depthwise-separable blocks, for small students in 2-D and 3-D.

The blocks are those of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_kd.networks.unet_of_blocks import Encoder, Stages, UNetOfBlocks, require_stages


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


class MobileUNet(UNetOfBlocks):
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
        if isinstance(blocks_per_stage, int):
            blocks_per_stage = [1, *[blocks_per_stage] * (n_stages - 1)]
        require_stages(n_stages, blocks=blocks_per_stage)
        if min(*blocks_per_stage, expansion) < 1:
            raise ValueError(
                f"blocks_per_stage and expansion must be at least 1, got {list(blocks_per_stage)} and {expansion}"
            )
        common = Stages.read(n_stages, features_per_stage, conv_op, kernel_sizes, strides, norm_op, norm_op_kwargs)
        norm = (common.norm_op, common.norm_op_kwargs)
        blocks = list(blocks_per_stage)
        expansions = [min(2**stage, expansion) for stage in range(n_stages)]

        def stage(number: int) -> nn.Module:
            width, kernel, stride = common.widths[number], common.kernel_sizes[number], common.strides[number]
            before = input_channels if number == 0 else common.widths[number - 1]
            parts: list[nn.Module] = []
            if number == 0:
                padding = [size // 2 for size in kernel]
                parts += [
                    conv_op(before, width, tuple(kernel), tuple(stride), padding, bias=False),
                    common.norm_op(width, **common.norm_op_kwargs),
                    nn.ReLU(inplace=True),
                ]
                before, stride = width, [1] * len(stride)
            for block in range(blocks[number]):
                hidden = before * expansions[number if block > 0 else max(number - 1, 0)]  # that of the grid it reads
                parts.append(InvertedResidual(before, width, hidden, conv_op, kernel, stride, *norm))
                before, stride = width, [1] * len(stride)
            return nn.Sequential(*parts)

        def block_of_decoder(number: int) -> nn.Module:
            width, kernel = common.widths[number], common.kernel_sizes[number]
            hidden = max(expansions[number], 2) * width
            return InvertedResidual(2 * width, width, hidden, conv_op, kernel, [1] * len(kernel), *norm)

        super().__init__(Encoder(common, map(stage, range(n_stages))), num_classes, deep_supervision, block_of_decoder)
