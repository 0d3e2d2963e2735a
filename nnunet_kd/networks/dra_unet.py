"""DRA-UNet: a U-Net with depthwise-pointwise reinforced modules and residual parameter-free attention.

The student of "SAM-DRA-UNet" (section 3.3, eq. 8-12), in 2-D as published and in 3-D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_pool_op
from torch import Tensor, fx, nn

from nnunet_kd.networks.unet_of_blocks import Encoder, Stages, UNetOfBlocks, require_odd

SIMAM_LAMBDA = 1e-4


def simam(features: Tensor, regularisation: float = SIMAM_LAMBDA) -> Tensor:
    r"""Weight each voxel by how much it stands out in its channel (parameter-free attention).

    .. math:: y = x\, \sigma\!\left(\frac{(x - \mu)^2}{4 (s^2 + \lambda)} + \frac12\right)

    with mean and variance (divisor n - 1) over all spatial axes of a channel. Yang et al., "SimAM: A Simple,
    Parameter-Free Attention Module for Convolutional Neural Networks", ICML 2021, eq. 5 and appendix.

    Args:
        features: The features, ``(B, C, *spatial)``; statistics are computed in float32 or higher precision.
        regularisation: :math:`\lambda`.
    """
    axes = tuple(range(2, features.ndim))
    precise = features.to(torch.promote_types(features.dtype, torch.float32))
    deviation = (precise - precise.mean(axes, keepdim=True)).square()
    samples = max(features[0, 0].numel() - 1, 1)
    variance = deviation.sum(axes, keepdim=True) / samples
    return features * torch.sigmoid(deviation / (4 * (variance + regularisation)) + 0.5).to(features.dtype)


fx.wrap("simam")  # one node of a traced graph
simam.channelwise = True  # type: ignore[attr-defined]  # lets pruning reorder its channels


class DPRM(nn.Module):
    r"""Depthwise-pointwise reinforced module, eq. 8 and 9, without biases.

    .. math:: f_1 = x + D(\sigma\{B(x)\}), \qquad f_2 = P(\sigma\{B(f_1)\})

    Args:
        inputs: The number of channels of x.
        outputs: The number of channels of f_2.
        conv_op: The class of 2-D or 3-D convolutions.
        kernel_size: The kernel size of the depthwise convolution D, one odd number per axis.
        norm_op: The class of the normalisation B; the paper uses batch normalisation.
        norm_op_kwargs: The keyword arguments of the normalisation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        conv_op: Any,
        kernel_size: Sequence[int],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        padding = [size // 2 for size in kernel_size]
        self.norm1 = norm_op(inputs, **norm_op_kwargs)
        self.depthwise = conv_op(inputs, inputs, tuple(kernel_size), padding=padding, groups=inputs, bias=False)
        self.norm2 = norm_op(inputs, **norm_op_kwargs)
        self.pointwise = conv_op(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``."""
        reinforced = x + self.depthwise(torch.relu(self.norm1(x)))
        result: Tensor = self.pointwise(torch.relu(self.norm2(reinforced)))
        return result


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps the grid, followed by normalisation and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        conv_op: Any,
        kernel_size: Sequence[int],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any],
    ) -> None:
        padding = [size // 2 for size in kernel_size]
        super().__init__(
            conv_op(inputs, outputs, tuple(kernel_size), padding=padding, bias=False),
            norm_op(outputs, **norm_op_kwargs),
            nn.ReLU(inplace=True),
        )


class ResSimAM(nn.Module):
    r"""Residual simple attention module, eq. 10-12, which adds no parameters to its two convolutions.

    .. math:: g_1 = \sigma(B\{\mathrm{Conv}(x)\}), \qquad g_2 = S\{\sigma(B\{\mathrm{Conv}(g_1)\})\}, \qquad
        g_3 = g_1 + g_2

    (Eq. 11 prints :math:`f_1` inside; :math:`g_1` is meant.)

    Args:
        inputs: The number of channels of x.
        outputs: The number of channels of g_1, g_2 and g_3.
        conv_op: The class of 2-D or 3-D convolutions.
        kernel_size: The kernel size of both convolutions, one odd number per axis.
        norm_op: The class of the normalisation B.
        norm_op_kwargs: The keyword arguments of the normalisation.
        attention: Whether S is :func:`simam` and g_1 is added. Without it, two plain convolutions remain.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        conv_op: Any,
        kernel_size: Sequence[int],
        norm_op: Any,
        norm_op_kwargs: dict[str, Any],
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.first = ConvNormReLU(inputs, outputs, conv_op, kernel_size, norm_op, norm_op_kwargs)
        self.second = ConvNormReLU(outputs, outputs, conv_op, kernel_size, norm_op, norm_op_kwargs)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``."""
        before: Tensor = self.first(x)
        after: Tensor = self.second(before)
        return before + simam(after) if self.attention else after


class DRAUNet(UNetOfBlocks):
    """DRA-UNet in 2-D or 3-D, which the plans name ``nnunet_kd.networks.dra_unet.DRAUNet``.

    Every encoder stage consists of max pooling, :class:`DPRM` and :class:`ResSimAM`. The first one begins with a
    convolution to its width, because the paper's depthwise convolution has 64 channels. The decoder is nnU-Net's, with
    transposed convolutions, skip connections and deep supervision, but with :class:`ResSimAM` as its blocks.

    Args:
        input_channels: The number of channels of the images.
        num_classes: The number of output channels.
        n_stages: The number of encoder stages (5 in the paper).
        features_per_stage: The width of every stage, or of the first one, which then doubles with every stage.
        conv_op: ``torch.nn.Conv2d`` or ``Conv3d``.
        kernel_sizes: One number, or a list with one number per axis for every stage.
        strides: The pooling strides of every stage in the form of the kernel sizes; the first is usually 1. A single
            number is the stride of all stages but the first.
        norm_op: The class of the normalisation; ``None`` for batch normalisation, as published.
        norm_op_kwargs: The keyword arguments of the normalisation.
        deep_supervision: Whether to return logits at several scales, finest first.
        dprm: Whether every stage begins with :class:`DPRM`, and the first one with a convolution before it (Table 2).
        attention: Whether to use the attention of :class:`ResSimAM` (Table 2). Without both, the network is a U-Net of
            two convolutions per stage with normalisation.
        dprm_kernel_size: The kernel size of the depthwise convolution.

    Shape:
        ``(B, input_channels, *spatial)`` to ``(B, num_classes, *spatial)``, with sizes divisible by the product of the
        strides; under deep supervision a list with the logits of every scale but the coarsest.

    Raises:
        ValueError: If the numbers of stages disagree, or if a kernel size is even.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int = 5,
        features_per_stage: int | Sequence[int] = 64,
        conv_op: Any = nn.Conv2d,
        kernel_sizes: int | Sequence[Sequence[int]] = 3,
        strides: int | Sequence[Sequence[int]] = 2,
        norm_op: Any = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        dprm: bool = True,
        attention: bool = True,
        dprm_kernel_size: int = 7,
    ) -> None:
        require_odd([dprm_kernel_size])
        common = Stages.read(n_stages, features_per_stage, conv_op, kernel_sizes, strides, norm_op, norm_op_kwargs)
        norm = (common.norm_op, common.norm_op_kwargs)
        pool = get_matching_pool_op(conv_op=conv_op, pool_type="max")

        def stage(number: int) -> nn.Module:
            width, kernel, stride = common.widths[number], common.kernel_sizes[number], tuple(common.strides[number])
            before = input_channels if number == 0 else common.widths[number - 1]
            parts: list[nn.Module] = []
            if dprm and number == 0:  # the first module's depthwise convolution needs this many channels
                padding = [size // 2 for size in kernel]
                parts.append(conv_op(before, width, tuple(kernel), padding=padding, bias=False))
                before = width
            if any(step > 1 for step in stride):
                parts.append(pool(stride, stride))
            if dprm:  # an axis that the plans do not convolve is not convolved here either
                wide = [dprm_kernel_size if size > 1 else 1 for size in kernel]
                parts.append(DPRM(before, width, conv_op, wide, *norm))
                before = width
            parts.append(ResSimAM(before, width, conv_op, kernel, *norm, attention))
            return nn.Sequential(*parts)

        def block(number: int) -> nn.Module:
            width = common.widths[number]
            return ResSimAM(2 * width, width, conv_op, common.kernel_sizes[number], *norm, attention)

        super().__init__(Encoder(common, map(stage, range(n_stages))), num_classes, deep_supervision, block)
