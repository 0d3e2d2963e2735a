"""KD-SAM: a ResNet-50 in place of SAM's image encoder, with SAM's own decoder used without prompts.

Patil et al., "Efficient Knowledge Distillation of SAM for Medical Image Segmentation". Prompt encoder and mask decoder
are those of the ``segment_anything`` package (Kirillov et al., "Segment Anything", 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.networks.output_scales import check_output_scales, full_and_quarter

SAM_STRIDE = 16  # input pixels per pixel of SAM's embedding


def to_frame(images: Tensor, size: int) -> Tensor:
    """Fit images into SAM's frame: resize the longer side to ``size``, pad the shorter one with zeros at its end.

    Args:
        images: The images, ``(B, C, H, W)``.
        size: The side of the square in pixels.

    Returns:
        ``(B, C, size, size)``.
    """
    height, width = content_size(images.shape[2:], size)
    shrinks = max(images.shape[2:]) > size
    resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)
    return F.pad(resized, (0, size - width, 0, size - height))


def content_size(image: Sequence[int], size: int) -> tuple[int, int]:
    """Return the height and width of an image in the frame."""
    scale = size / max(image)
    height, width = (int(side * scale + 0.5) for side in image)
    return height, width


class DistilledEncoder(nn.Module):
    """A ResNet and a neck whose output has the shape of SAM's image embedding.

    The neck is SAM's own, with an upsampling between its two convolutions: ``2048 -> 256`` on the ResNet's grid of
    stride 32, bilinear interpolation to stride 16, ``3 x 3``, each followed by SAM's layer normalisation.

    Args:
        input_channels: The number of channels of the images.
        blocks: The number of residual blocks in each of the four stages; ``(3, 4, 6, 3)`` is a ResNet-50.
        embedding_channels: The number of channels of SAM's embedding.
        image_size: The side of SAM's frame in pixels.

    Shape:
        ``(B, input_channels, H, W)`` of any size to ``(B, embedding_channels, image_size / 16, image_size / 16)``.
    """

    def __init__(self, input_channels: int, blocks: Sequence[int], embedding_channels: int, image_size: int) -> None:
        from segment_anything.modeling.common import LayerNorm2d
        from torchvision.models.resnet import Bottleneck, ResNet

        super().__init__()
        self.image_size = image_size
        resnet = ResNet(Bottleneck, list(blocks))
        if input_channels != 3:
            resnet.conv1 = nn.Conv2d(input_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        parts = dict(resnet.named_children())
        del parts["avgpool"], parts["fc"]
        self.resnet = nn.Sequential()
        for name, part in parts.items():  # keeps torchvision's names, so that its weights load
            self.resnet.add_module(name, part)
        self.reduce = nn.Sequential(nn.Conv2d(2048, embedding_channels, 1, bias=False), LayerNorm2d(embedding_channels))
        self.refine = nn.Sequential(
            nn.Conv2d(embedding_channels, embedding_channels, 3, padding=1, bias=False),
            LayerNorm2d(embedding_channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.reduce(self.resnet(to_frame(images, self.image_size)))
        side = self.image_size // SAM_STRIDE
        embedding: Tensor = self.refine(F.interpolate(features, (side, side), mode="bilinear", align_corners=False))
        return embedding


class SamDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder, which predict one mask per structure without prompts.

    Args:
        structures: The number of masks, each with its own token.
        background: Whether to put a channel of zeros before the masks. The softmax over it and a single mask is then
            the sigmoid of the mask.
        embedding_channels: The number of channels of SAM's embedding.
        image_size: The side of SAM's frame in pixels.
        mlp_dim: The hidden width of the transformer's two layers.
        num_heads: The number of attention heads.
        mask_channels: The number of channels of the prompt encoder's mask branch, which is not used.
        deep_supervision: See :class:`KDSAM`.

    Shape:
        Embeddings ``(B, embedding_channels, h, w)`` and the size of the images to ``(B, channels, H, W)``.
    """

    def __init__(
        self,
        structures: int,
        background: bool,
        embedding_channels: int,
        image_size: int,
        mlp_dim: int,
        num_heads: int,
        mask_channels: int,
        deep_supervision: bool,
    ) -> None:
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        super().__init__()
        self.deep_supervision = deep_supervision
        self.background = background
        self.image_size = image_size
        side = image_size // SAM_STRIDE
        self.prompt_encoder = PromptEncoder(embedding_channels, (side, side), (image_size, image_size), mask_channels)
        self.mask_decoder = MaskDecoder(
            transformer_dim=embedding_channels,
            transformer=TwoWayTransformer(2, embedding_channels, num_heads, mlp_dim),
            num_multimask_outputs=structures - 1,  # SAM adds one token
        )
        prompts = self.prompt_encoder
        for unused in (prompts.point_embeddings, prompts.not_a_point_embed, prompts.mask_downscaling):
            unused.requires_grad_(False)  # DDP would wait for their gradients
        self.mask_decoder.iou_prediction_head.requires_grad_(False)

    def forward(self, embeddings: Tensor, size: Sequence[int]) -> Tensor | list[Tensor]:
        nothing, no_mask = self.prompt_encoder(points=None, boxes=None, masks=None)
        # SAM decodes many prompts of one image; without prompts the images themselves can be the batch.
        masks, _ = self.mask_decoder.predict_masks(embeddings, self.prompt_encoder.get_dense_pe(), nothing, no_mask)
        framed = F.interpolate(masks, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        height, width = content_size(size, self.image_size)
        logits = F.interpolate(framed[..., :height, :width], tuple(size), mode="bilinear", align_corners=False)
        if self.background:
            logits = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
        return full_and_quarter(logits) if self.deep_supervision else logits


class KDSAM(nn.Module):
    """KD-SAM, which the plans name ``nnunet_kd.networks.kd_sam.KDSAM``: an encoder of 24.6 M and a decoder of 4 M.

    The network fits images into SAM's frame (:func:`to_frame`), and resizes logits back to the grid of the images.

    Args:
        input_channels: The number of channels of the images.
        num_classes: The number of output channels.
        conv_op: ``torch.nn.Conv2d``.
        strides: The only supported strides, from which nnU-Net computes the grids of deep supervision.
        background: Whether the first output channel is the background, with a logit of 0; ``False`` if all channels are
            regions.
        image_size: The side of SAM's frame in pixels, a multiple of 32.
        blocks: The number of residual blocks in each of the four stages; ``(3, 4, 6, 3)`` is a ResNet-50.
        embedding_channels: The number of channels of SAM's embedding.
        mlp_dim: The hidden width of the decoder's transformer.
        num_heads: The number of attention heads.
        mask_channels: The number of channels of the prompt encoder's mask branch.
        deep_supervision: Whether to return logits at a quarter of the resolution as well. nnU-Net gives the coarsest
            output the weight 0, so training does not change.

    Shape:
        ``(B, input_channels, H, W)`` of any size to ``(B, num_classes, H, W)``; under deep supervision a list of these
        logits and ``(B, num_classes, H / 4, W / 4)``.

    Raises:
        ValueError: For a 3-D ``conv_op``, other strides, a frame that the ResNet cannot halve five times, or no class
            besides the background.
    """

    resizes = True  # the computation depends on the image size, so an exported network accepts only one

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: Any = nn.Conv2d,
        strides: Sequence[Sequence[int]] | None = None,
        background: bool = True,
        image_size: int = 1024,
        blocks: Sequence[int] = (3, 4, 6, 3),
        embedding_channels: int = 256,
        mlp_dim: int = 2048,
        num_heads: int = 8,
        mask_channels: int = 16,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_output_scales(type(self).__name__, conv_op, strides)
        if image_size < 32 or image_size % 32:
            raise ValueError(f"the side of SAM's frame must be a multiple of 32, got {image_size}")
        structures = num_classes - 1 if background else num_classes
        if structures < 1:
            raise ValueError(f"num_classes must leave a structure besides the background, got {num_classes}")
        self.encoder = DistilledEncoder(input_channels, blocks, embedding_channels, image_size)
        self.decoder = SamDecoder(
            structures, background, embedding_channels, image_size, mlp_dim, num_heads, mask_channels, deep_supervision
        )

    def forward(self, images: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(self.encoder(images), images.shape[2:])


def load_sam_decoder(network: KDSAM, weights: Mapping[str, Tensor]) -> None:
    """Load SAM's weights into the decoder.

    The structures take the token, hypernetwork and quality head of SAM's four masks in turn.

    Args:
        network: The network whose decoder is changed.
        weights: The state dict of a complete SAM in the published format.

    Raises:
        ValueError: If keys or shapes are not those of the network's decoder.
    """
    decoder = network.decoder
    parts = ("prompt_encoder.", "mask_decoder.")
    given = {name: value for name, value in weights.items() if name.startswith(parts)}
    structures, tokens = decoder.mask_decoder.num_mask_tokens, given.get("mask_decoder.mask_tokens.weight")
    if tokens is None:
        raise ValueError("the file does not hold the weights of a SAM: mask_decoder.mask_tokens.weight is missing")
    turn = [structure % len(tokens) for structure in range(structures)]
    adapted = {name: value for name, value in given.items() if not name.startswith("mask_decoder.output_hypernetworks")}
    quality = f"mask_decoder.iou_prediction_head.layers.{len(decoder.mask_decoder.iou_prediction_head.layers) - 1}."
    for name in ("mask_decoder.mask_tokens.weight", f"{quality}weight", f"{quality}bias"):
        if name in given:
            adapted[name] = given[name][turn]
    for structure, source in enumerate(turn):
        before, after = (f"mask_decoder.output_hypernetworks_mlps.{number}." for number in (source, structure))
        adapted.update({after + n.removeprefix(before): v for n, v in given.items() if n.startswith(before)})
    try:
        decoder.load_state_dict(adapted)
    except RuntimeError as error:
        raise ValueError(f"SAM's weights do not fit the decoder of KD-SAM: {error}") from error


def load_resnet(network: KDSAM, weights: Mapping[str, Tensor]) -> None:
    """Load a classifier's weights into the ResNet, for instance torchvision's ImageNet weights.

    If there are not three input channels, the first convolution gets the mean over the colours, scaled so that the sum
    over channels is the same.

    Args:
        network: The network whose ResNet is changed; its neck is not.
        weights: The state dict with torchvision's names.

    Raises:
        ValueError: If keys or shapes are not those of the network's ResNet.
    """
    resnet: Any = network.encoder.resnet
    channels: int = resnet.conv1.in_channels
    adapted = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    if "conv1.weight" in adapted and channels != 3:
        first = adapted["conv1.weight"]
        adapted["conv1.weight"] = first.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)
    try:
        resnet.load_state_dict(adapted)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the ResNet of KD-SAM: {error}") from error
