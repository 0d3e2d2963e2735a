"""BrainSegDMIF: one SAM encoder per modality, fused at several depths, and masks without prompts.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", sections 3 and 4.2. 2-D.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_kd.networks.modal_fusion import DynamicModalFusion
from nnunet_kd.networks.output_scales import check_output_scales
from nnunet_kd.networks.prompt_free_decoder import PromptFreeDecoder
from nnunet_kd.networks.square_frame import to_square


class EncodedImages(NamedTuple):
    """The input of the decoder.

    Attributes:
        features: Features of the square, ``(B, out_channels, rows, columns)``.
        size: The height and width of the images.
    """

    features: Tensor
    size: tuple[int, int]


class ModalityEncoders(nn.Module):
    """One SAM image encoder per modality, in parallel, with DMIF after every block of global attention.

    The encoders are those of ``segment_anything`` without their necks. SAM takes RGB, so each modality is repeated
    three times and published weights fit unchanged. f_fus is added to the tokens of every encoder; the f_fus of the
    last block passes through a common neck to the decoder.

    Attributes:
        encoders: One encoder per modality, in the order of ``modalities``.
        fusions: One DMIF module per span of blocks; empty without DMIF.
        neck: SAM's neck from tokens to ``out_channels``, common to all encoders.

    Args:
        input_channels: The number of channels of the images.
        modalities: The input channels that have an encoder.
        global_attention: The blocks that attend to the whole image, ascending; the last block must be one of them.
        dmif: Whether DMIF fuses the encoders. Without it they are independent and their mean is the result.
        activation_checkpointing: Whether to keep only the inputs of blocks and to recompute blocks for the gradient.
        image_size: As for :class:`BrainSegDMIF`, like all following arguments.
    """

    def __init__(
        self,
        input_channels: int,
        modalities: Sequence[int],
        global_attention: Sequence[int],
        dmif: bool,
        activation_checkpointing: bool,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        out_channels: int,
    ) -> None:
        from segment_anything.modeling import ImageEncoderViT

        super().__init__()
        self.input_channels = input_channels
        self.modalities = list(modalities)
        self.global_attention = tuple(global_attention)
        self.image_size = image_size
        self.activation_checkpointing = activation_checkpointing
        self.encoders = nn.ModuleList(
            ImageEncoderViT(
                img_size=image_size,
                patch_size=patch_size,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                out_chans=out_channels,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=window_size,
                global_attn_indexes=self.global_attention,
            )
            for _ in modalities
        )
        self.neck: nn.Module = self.encoders[0].neck  # type: ignore[assignment]
        for encoder in self.encoders:
            encoder.neck = nn.Identity()
        self.fusions = nn.ModuleList(DynamicModalFusion(embed_dim) for _ in global_attention if dmif)

    def forward(self, images: Tensor) -> EncodedImages:
        """Return the fused features of images placed in a square (:func:`~.square_frame.to_square`).

        Raises:
            ValueError: If the images are not ``(B, input_channels, height, width)``.
        """
        if images.ndim != 4 or images.shape[1] != self.input_channels:
            raise ValueError(f"expected images (B, {self.input_channels}, height, width), got {tuple(images.shape)}")
        square = to_square(images, self.image_size)
        streams = []
        for modality, encoder in zip(self.modalities, self.encoders, strict=True):
            grey = square[:, modality : modality + 1].expand(-1, 3, -1, -1)
            streams.append(encoder.patch_embed(grey) + encoder.pos_embed)  # type: ignore[operator]
        ends = [block + 1 for block in self.global_attention]
        for span, (start, end) in enumerate(pairwise([0, *ends])):
            for number, encoder in enumerate(self.encoders):
                for block in encoder.blocks[start:end]:  # type: ignore[index]
                    streams[number] = self._run(block, streams[number])
            if self.fusions:
                fused = self._run(self.fusions[span], torch.stack(streams, 1))
                streams = [stream + fused for stream in streams]
        if not self.fusions:
            fused = torch.stack(streams).mean(0)
        return EncodedImages(self.neck(fused.permute(0, 3, 1, 2)), (images.shape[2], images.shape[3]))

    def _run(self, module: nn.Module, tokens: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # The blocks are deterministic, so the random state need not be restored.
            again: Tensor = checkpoint(module, tokens, use_reentrant=False, preserve_rng_state=False)
            return again
        result: Tensor = module(tokens)
        return result


class BrainSegDMIF(nn.Module):
    """BrainSegDMIF for 2-D configurations: encoders for all modalities and a decoder without prompts.

    The plans name it ``nnunet_kd.networks.brainseg_dmif.BrainSegDMIF``. :class:`ModalityEncoders` is followed by
    :class:`~.prompt_free_decoder.PromptFreeDecoder`. The defaults are those of the paper, with ViT-B: for four
    modalities 353 million parameters, 344 million of them in the encoders.

    Smaller images are padded with zeros to a square with side ``image_size``; larger ones are first shrunk bilinearly
    with their aspect ratio kept. The logits are resized back to the grid of the images. Intensities are expected to be
    normalised by nnU-Net to zero mean and unit deviation, as they are for SAM.

    Args:
        input_channels: The number of channels of the images; each channel is a modality.
        num_classes: The number of output channels, with the background unless they are regions.
        image_size: The side of the square that the encoders see, in pixels; a multiple of the patch size.
        patch_size: The side of a token in pixels.
        embed_dim: The number of features per token.
        depth: The number of blocks per encoder.
        num_heads: The number of attention heads per block.
        global_attention: The blocks that attend to the whole image, ascending; the last block must be one of them.
        window_size: The side of the other blocks' windows, in tokens.
        out_channels: The number of fused features in the decoder; a multiple of 16.
        dmif: Whether DMIF fuses the encoders (Table 3). Without it, their mean is taken at the end.
        prompt_generator: Whether mask tokens are learnt in place of prompts (Table 3). Without it, masks are made from
            image features alone.
        upsampling_decoder: Whether features are upsampled at three scales (Table 3) instead of SAM's one.
        modalities: The input channels that are used, each with its own encoder (Table 2); ``None`` for all.
        activation_checkpointing: Whether to keep only the inputs of blocks in training and to compute blocks twice.
        conv_op: ``torch.nn.Conv2d``, which the plans name.
        strides: ``[[1, 1], [4, 4], [4, 4]]``, from which nnU-Net computes the grids of deep supervision.
        deep_supervision: Whether to return logits at two scales; nnU-Net switches ``decoder.deep_supervision``.

    Shape:
        ``(B, input_channels, height, width)`` of any size to ``(B, num_classes, height, width)``; under deep
        supervision a list of these logits and ``(B, num_classes, height / 4, width / 4)``.

    Raises:
        ValueError: If arguments do not fit each other, or for another ``conv_op`` or other strides.
    """

    resizes = True  # the computation depends on the image size, so an exported network accepts only one

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        image_size: int = 256,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        global_attention: Sequence[int] = (2, 5, 8, 11),
        window_size: int = 14,
        out_channels: int = 256,
        dmif: bool = True,
        prompt_generator: bool = True,
        upsampling_decoder: bool = True,
        modalities: Sequence[int] | None = None,
        activation_checkpointing: bool = False,
        conv_op: Any = nn.Conv2d,
        strides: Sequence[Sequence[int]] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        modalities = list(range(input_channels)) if modalities is None else list(modalities)
        check_output_scales(type(self).__name__, conv_op, strides)
        if not modalities or len({*modalities}) < len(modalities) or not {*modalities} <= {*range(input_channels)}:
            raise ValueError(f"modalities must be different channels of 0 to {input_channels - 1}, got {modalities}")
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of the patch size {patch_size}, got {image_size}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, {num_heads}, got {embed_dim}")
        if out_channels % 16:
            raise ValueError(f"out_channels must be a multiple of 16, got {out_channels}")
        blocks = list(global_attention)
        if not blocks or blocks != sorted({*blocks}) or blocks[0] < 0 or blocks[-1] != depth - 1:
            raise ValueError(f"global_attention must ascend to the last block, {depth - 1}, got {blocks}")
        self.encoder = ModalityEncoders(
            input_channels,
            modalities,
            blocks,
            dmif,
            activation_checkpointing,
            image_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            window_size=window_size,
            out_channels=out_channels,
        )
        self.decoder = PromptFreeDecoder(
            num_classes, out_channels, image_size, prompt_generator, upsampling_decoder, deep_supervision
        )

    def forward(self, x: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Keep a module's initial values; nnU-Net calls this, but He's initialisation would not suit transformers."""
