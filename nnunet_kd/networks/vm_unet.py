"""VM-UNet: a 2-D U-Net of visual state space blocks with additive skip connections, the backbone of DSVM-UNet.

Ruan et al., "VM-UNet: Vision Mamba UNet for Medical Image Segmentation", arXiv:2402.02491, section 3, in the size of
Shao et al., "DSVM-UNet", table 4: VSS blocks 2-2-2-2 and 2-2-2-1, widths 96 to 768.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    maybe_convert_scalar_to_list,
)
from torch import Tensor, nn

from nnunet_kd.networks.selective_scan import mamba_kernel
from nnunet_kd.networks.vss_block import VSSBlock

Stride = tuple[int, int]


class PatchEmbedding(nn.Module):
    """Embed non-overlapping patches as tokens: ``(B, inputs, H, W)`` to ``(B, H / s, W / s, outputs)``."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, stride, stride)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.project(x).permute(0, 2, 3, 1))
        return y


class PatchMerging(nn.Module):
    """Merge neighbouring tokens into one: ``(B, H, W, inputs)`` to ``(B, H / s, W / s, outputs)``."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(math.prod(stride) * inputs)
        self.reduce = nn.Linear(math.prod(stride) * inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        rows, columns = self.stride
        neighbours = x.reshape(batch, height // rows, rows, width // columns, columns, -1).transpose(2, 3).flatten(3)
        y: Tensor = self.reduce(self.norm(neighbours))
        return y


class PatchExpanding(nn.Module):
    """Expand each token into several: ``(B, H, W, inputs)`` to ``(B, H s, W s, outputs)``."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.expand = nn.Linear(inputs, math.prod(stride) * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        neighbours = self.expand(x).reshape(*x.shape[:3], *self.stride, -1)
        y: Tensor = self.norm(neighbours.transpose(2, 3).flatten(3, 4).flatten(1, 2))
        return y


class _Encoder(nn.Module):
    """An encoder with nnU-Net's interface; ``forward`` returns the features of all stages, finest first."""

    def __init__(
        self,
        input_channels: int,
        output_channels: list[int],
        strides: list[Stride],
        depths: list[int],
        state_size: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.output_channels, self.strides = output_channels, [list(stride) for stride in strides]
        self.divisors = [math.prod(steps) for steps in zip(*strides, strict=True)]
        rates = _drop_rates(0, drop_path, depths)
        stages = []
        before = input_channels
        for number, (width, stride) in enumerate(zip(output_channels, strides, strict=True)):
            coarser = PatchMerging if number else PatchEmbedding
            blocks = [VSSBlock(width, state_size, rate) for rate in rates[number]]
            stages.append(nn.Sequential(coarser(before, width, stride), *blocks))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map ``(B, input_channels, H, W)`` to features ``(B, C, H / s, W / s)``, one per stage."""
        if any(size % divisor for size, divisor in zip(x.shape[2:], self.divisors, strict=True)):
            raise ValueError(f"expected image sizes divisible by {tuple(self.divisors)}, got {tuple(x.shape[2:])}")
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x.permute(0, 3, 1, 2))
        return features


class _DecoderStage(nn.Module):
    """A decoder stage: patch expanding, addition of the encoder's features, VSS blocks."""

    def __init__(self, inputs: int, outputs: int, stride: Stride, state_size: int, rates: list[float]) -> None:
        super().__init__()
        self.expand = PatchExpanding(inputs, outputs, stride)
        self.blocks = nn.Sequential(*(VSSBlock(outputs, state_size, rate) for rate in rates))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` and a skip ``(B, outputs, H s, W s)`` to the shape of the skip."""
        y: Tensor = self.blocks(self.expand(x.permute(0, 2, 3, 1)) + skip.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class _Bottleneck(nn.Sequential):
    """VSS blocks on channels-first features ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class _Decoder(nn.Module):
    """A decoder with nnU-Net's interface: ``stages`` and ``seg_layers``, lowest resolution first, ``deep_supervision``.

    ``bottleneck`` is the paper's deepest decoder stage, which has the resolution of the deepest encoder stage and no
    skip. All ``seg_layers`` exist with and without deep supervision, so that weights load in both cases. The last one
    has the full resolution and its own expansion.
    """

    def __init__(
        self, encoder: _Encoder, num_classes: int, depths: list[int], state_size: int, drop_path: float, deep: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep
        widths = encoder.output_channels[::-1]
        strides = [(stride[0], stride[1]) for stride in encoder.strides[::-1]]
        deepest, *rates = _drop_rates(drop_path, 0, depths)
        self.bottleneck = _Bottleneck(*(VSSBlock(widths[0], state_size, rate) for rate in deepest))
        self.stages = nn.ModuleList(
            _DecoderStage(inputs, outputs, stride, state_size, rate)
            for inputs, outputs, stride, rate in zip(widths[:-1], widths[1:], strides[:-1], rates, strict=True)
        )
        final = max(widths[-1] // 4, 1)
        self.final = PatchExpanding(widths[-1], final, strides[-1])
        self.seg_layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in (*widths[1:], final))

    def forward(self, features: Sequence[Tensor]) -> Any:
        """Map the encoder's features to logits, or to a list of them under deep supervision, finest first."""
        x = self.bottleneck(features[-1])
        logits = []
        *heads, last = self.seg_layers
        for stage, head, skip in zip(self.stages, heads, features[-2::-1], strict=True):
            x = stage(x, skip)
            if self.deep_supervision:
                logits.append(head(x))
        logits.append(last(self.final(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        return logits[::-1] if self.deep_supervision else logits[0]


class VMUNet(nn.Module):
    """VM-UNet in 2-D, which the plans name ``nnunet_kd.networks.vm_unet.VMUNet``.

    An encoder stage consists of patch embedding or merging and VSS blocks; a decoder stage of patch expanding, the
    addition of the encoder stage's output and VSS blocks. The published code adds the input of an encoder stage, before
    the expansion; here the decoder needs nothing but the features of the encoder, with the same number of parameters
    and operations. A last expansion to a quarter of the first width and a 1x1 convolution yield logits at full
    resolution.

    The plans have one more stride than stages: the first, ``[1, 1]``, is the full resolution, the second that of the
    patch embedding. nnU-Net derives the scales of deep supervision from them: 1, 1/4, 1/8 and 1/16.

    With three input channels and one class the network has 27.43 M parameters and, at 256 x 256, 4.11 G operations, as
    published: multiply-adds of convolutions and linear layers, and 4 operations per normalised number. This count omits
    the projections of the four directions (1.22 G multiply-adds) and the scan (2.96 G by VMamba's formula of
    ``9 N + 1`` operations per token and channel).

    Args:
        input_channels: The number of channels of the images.
        num_classes: The number of output channels.
        n_stages: The number of encoder stages.
        features_per_stage: The width of every stage, or of the first one, which then doubles with every stage.
        conv_op: ``torch.nn.Conv2d``.
        strides: ``n_stages + 1`` strides, each a number or one number per axis; ``None`` for 1, 4, 2, 2, ...
        depths: The number of VSS blocks of each encoder stage, or of all of them.
        depths_decoder: The number of VSS blocks of each decoder stage, deepest first and with the bottleneck, or of all
            of them; ``None`` for two, and one in the finest stage.
        deep_supervision: Whether to return logits at all scales, finest first.
        state_size: The state size of the scan.
        drop_path: The probability that a training sample skips the deepest blocks. It grows linearly from 0 along the
            encoder and falls back to 0 along the decoder. The default is that of the published class; the published
            configurations use 0.3.

    Shape:
        ``(B, input_channels, H, W)`` to ``(B, num_classes, H, W)``, with sizes divisible by the product of the strides;
        under deep supervision a list with the logits of every scale.

    Raises:
        ValueError: For a 3-D ``conv_op``, numbers of stages that disagree, a first stride other than 1, or a drop path
            outside [0, 1); in the forward pass, for image sizes that are not divisible.
    """

    has_onnx_form = False  # the scan is a loop over chunks with its own backward pass
    compiles = mamba_kernel is None  # the kernel would part the compiled network at every scan

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int = 4,
        features_per_stage: int | Sequence[int] = 96,
        conv_op: Any = nn.Conv2d,
        strides: Sequence[int | Sequence[int]] | None = None,
        depths: int | Sequence[int] = 2,
        depths_decoder: int | Sequence[int] | None = None,
        deep_supervision: bool = False,
        state_size: int = 16,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        if convert_conv_op_to_dim(conv_op) != 2:
            raise ValueError(f"VM-UNet is 2-D: conv_op must be torch.nn.Conv2d, got {conv_op.__name__}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
        if isinstance(features_per_stage, int):
            features_per_stage = [features_per_stage * 2**stage for stage in range(n_stages)]
        if strides is None:
            strides = [1, 4, *[2] * (n_stages - 1)]
        if depths_decoder is None:
            depths_decoder = [*[2] * (n_stages - 1), 1]
        depths, depths_decoder = ([n] * n_stages if isinstance(n, int) else list(n) for n in (depths, depths_decoder))
        for name, given, wanted in (
            ("features", features_per_stage, n_stages),
            ("strides", strides, n_stages + 1),
            ("depths", depths, n_stages),
            ("decoder depths", depths_decoder, n_stages),
        ):
            if len(given) != wanted:
                raise ValueError(f"{n_stages} stages need {wanted} {name}, got {len(given)}")
        rows_columns = [tuple(maybe_convert_scalar_to_list(conv_op, stride)) for stride in strides]
        if rows_columns[0] != (1, 1):
            raise ValueError(f"the first stride must be 1, the full resolution, got {list(rows_columns[0])}")
        self.encoder = _Encoder(
            input_channels, list(features_per_stage), rows_columns[1:], depths, state_size, drop_path
        )
        self.decoder = _Decoder(self.encoder, num_classes, depths_decoder, state_size, drop_path, deep_supervision)

    def forward(self, x: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialize a linear layer with a truncated normal distribution of standard deviation 0.02, as published.

        All other modules, the scan included, keep their initial values. nnU-Net calls this.
        """
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)


def _drop_rates(first: float, last: float, depths: list[int]) -> list[list[float]]:
    """Return drop path rates for the blocks of every stage that change linearly from ``first`` to ``last``."""
    count = max(sum(depths) - 1, 1)
    rates = iter([first + (last - first) * (block / count) for block in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]
