"""A mask decoder without prompts: learnt mask tokens, and upsampling at three scales.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.networks.output_scales import full_and_quarter
from nnunet_kd.networks.square_frame import from_square

NUM_HEADS = 8

# Upsampling factors of D_1, D_2 and D_3, for which the paper gives no numbers. SAM has a single factor of 4.
SCALES = (2, 4, 8)


class PromptGenerator(nn.Module):
    r"""Learnt mask tokens in place of prompts, eq. 8 and 9, with residuals and norms as in SAM's decoder.

    .. math::
        \tilde M_Q &= \mathrm{Attn}(M_Q, M_Q), \qquad M'_Q = \mathrm{Attn}(\tilde M_Q, F_r) \\
        M_T &= \mathrm{MLP}(M'_Q), \qquad M''_Q = \mathrm{Attn}(F_r, M_T)

    The attention is the multi-head attention of ``segment_anything``, at half the width to and from the image. The
    features keep the positions that the encoders added.

    Args:
        num_tokens: K, the number of tokens, one per output channel.
        dim: D, the number of features.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        from segment_anything.modeling.common import MLPBlock
        from segment_anything.modeling.transformer import Attention

        super().__init__()
        self.mask_tokens = nn.Parameter(torch.randn(num_tokens, dim))
        self.self_attention: Any = Attention(dim, NUM_HEADS)
        self.token_to_image: Any = Attention(dim, NUM_HEADS, downsample_rate=2)
        self.mlp: Any = MLPBlock(dim, 8 * dim, nn.ReLU)
        self.image_to_token: Any = Attention(dim, NUM_HEADS, downsample_rate=2)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return M_T and M''_Q.

        Args:
            image: F_r, the fused features of all positions.

        Shape:
            ``(B, N, D)`` to ``(B, K, D)`` and ``(B, N, D)``.
        """
        # shape[0] instead of len(), which would make the batch size of an exported network a constant.
        tokens = self.mask_tokens.expand(image.shape[0], -1, -1)
        tokens = self.norms[0](tokens + self.self_attention(tokens, tokens, tokens))
        tokens = self.norms[1](tokens + self.token_to_image(tokens, image, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.image_to_token(image, tokens, tokens))
        return tokens, image


class MaskModulation(nn.Module):
    """G(O_Q) of eq. 11: one factor per mask token and channel, after the tokens attend to the image again.

    This is SAM's last attention and hypernetwork, but with one network for all tokens.

    Args:
        dim: D, the number of features.
        width: C, the number of channels of the modulated maps.
    """

    def __init__(self, dim: int, width: int) -> None:
        from segment_anything.modeling.transformer import Attention

        super().__init__()
        self.token_to_image: Any = Attention(dim, NUM_HEADS, downsample_rate=2)
        self.norm = nn.LayerNorm(dim)
        self.mapping = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, width))

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Map tokens ``(B, K, D)`` and image features ``(B, N, D)`` to G(O_Q), ``(B, K, C)``."""
        mapped: Tensor = self.mapping(self.norm(tokens + self.token_to_image(tokens, image, image)))
        return mapped


def upsampling(dim: int, width: int, scale: int) -> nn.Sequential:
    """Build a module of eq. 10: a transposed convolution with kernel and stride ``scale``, and a 3x3 convolution."""
    from segment_anything.modeling.common import LayerNorm2d

    return nn.Sequential(
        nn.ConvTranspose2d(dim, 2 * width, scale, scale),
        LayerNorm2d(2 * width),
        nn.GELU(),
        nn.Conv2d(2 * width, width, 3, padding=1),  # mixes across the borders of patches
        nn.GELU(),
    )


def sam_upsampling(dim: int, width: int) -> nn.Sequential:
    """Build the upsampling of SAM's mask decoder, by a factor of 4."""
    from segment_anything.modeling.common import LayerNorm2d

    return nn.Sequential(
        nn.ConvTranspose2d(dim, 2 * width, 2, 2),
        LayerNorm2d(2 * width),
        nn.GELU(),
        nn.ConvTranspose2d(2 * width, width, 2, 2),
        nn.GELU(),
    )


def modulated_masks(modulation: Tensor, scales: list[Tensor]) -> Tensor:
    r"""Multiply maps at several scales by G(O_Q), resize them to the finest scale and sum them (eq. 11-13).

    :math:`G(O_Q) \odot D_i` has a channel axis, which a mask does not have; as in SAM's decoder, the mask is the sum
    over it. Because resizing and summing over scales are linear, the sum over channels is taken first, so that no map
    has both a class axis and a channel axis.

    Args:
        modulation: G(O_Q), ``(B, K, C)``.
        scales: The maps D_1, D_2, .. of shape ``(B, C, rows_i, columns_i)``, finest last.

    Returns:
        The masks at the finest scale, ``(B, K, rows, columns)``.
    """
    masks = [(modulation @ maps.flatten(2)).view(*modulation.shape[:2], *maps.shape[2:]) for maps in scales]
    final: Tensor = masks[-1]
    for mask in masks[:-1]:
        final = final + F.interpolate(mask, final.shape[2:], mode="bilinear", align_corners=False)
    return final


class PromptFreeDecoder(nn.Module):
    """The part of BrainSegDMIF after the encoders: prompt generator and upsampling decoder.

    Args:
        num_classes: K, the number of output channels.
        dim: D, the number of channels of the features; divisible by 16.
        image_size: The side of the square that the features cover, in pixels.
        prompt_generator: Whether to use mask tokens. Without them, the features are upsampled directly, and G(O_Q) is
            one learnt number per class and channel, which amounts to a 1x1 convolution.
        upsampling_decoder: Whether to upsample at three scales instead of SAM's one.
        deep_supervision: Whether to return logits at a quarter of the resolution as well.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        image_size: int,
        prompt_generator: bool,
        upsampling_decoder: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        width = dim // 8
        self.image_size = image_size
        self.deep_supervision = deep_supervision
        self.prompts = PromptGenerator(num_classes, dim) if prompt_generator else None
        self.modulation = MaskModulation(dim, width) if prompt_generator else None
        self.classes = None if prompt_generator else nn.Parameter(torch.randn(num_classes, width) / width**0.5)
        paths = [upsampling(dim, width, scale) for scale in SCALES] if upsampling_decoder else None
        self.paths = nn.ModuleList(paths or [sam_upsampling(dim, width)])

    def masks(self, features: Tensor) -> Tensor:
        """Return logits on the decoder's grid, which is 8 times that of the features, or 4 times with SAM's upsampling.

        Shape:
            ``(B, D, rows, columns)`` to ``(B, K, 8 rows, 8 columns)``.
        """
        if self.prompts is None or self.modulation is None:
            assert self.classes is not None
            modulation = self.classes.expand(features.shape[0], -1, -1)
        else:
            tokens, image = self.prompts(features.flatten(2).mT)
            modulation = self.modulation(tokens, image)
            features = image.mT.reshape(features.shape)
        return modulated_masks(modulation, [path(features) for path in self.paths])

    def forward(self, encoded: tuple[Tensor, tuple[int, int]]) -> Tensor | list[Tensor]:
        """Return logits at the images' resolution, and under deep supervision also at a quarter of it.

        Args:
            encoded: The features ``(B, D, rows, columns)`` of the square, and the height and width of the images.
        """
        features, size = encoded
        logits = from_square(self.masks(features), self.image_size, size)
        return full_and_quarter(logits) if self.deep_supervision else logits
