"""BrainSegDMIF: one SAM encoder a modality, fused as they go, and masks without a prompt.

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
    """What the decoder needs.

    Attributes:
        features: ``(B, out_channels, rows, columns)`` of the square.
        size: Height and width of the images in it.
    """

    features: Tensor
    size: tuple[int, int]


class ModalityEncoders(nn.Module):
    """A SAM image encoder for each modality, run side by side, with DMIF after every block of global attention.

    The encoders are ``segment_anything``'s without their necks. SAM sees RGB, so a modality is shown three times and
    published weights fit as they are. f_fus is added to the tokens of every encoder; that of the last block goes
    through one neck to the decoder.

    Attributes:
        encoders: One a modality, in the order of ``modalities``.
        fusions: DMIF after each span of blocks; empty without.
        neck: SAM's, from tokens to ``out_channels``; one for all.

    Args:
        input_channels: Of the images.
        modalities: Which of them are seen.
        global_attention: Blocks that attend to the whole image, ascending, the last block being one.
        dmif: Else encoders do not hear of each other, and their mean is the result.
        activation_checkpointing: Keep only the inputs of blocks, and compute blocks again for the gradient.
        image_size: As for :class:`BrainSegDMIF`, and so the rest.
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
        """Fused features of the images, which are shown in a square (:func:`~.square_frame.to_square`).

        Raises:
            ValueError: For images that are not ``(B, input_channels, height, width)``.
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
            # Nothing here is random, so no state of random numbers has to be kept for the second time.
            again: Tensor = checkpoint(module, tokens, use_reentrant=False, preserve_rng_state=False)
            return again
        result: Tensor = module(tokens)
        return result


class BrainSegDMIF(nn.Module):
    """The network a plan names as ``nnunet_kd.networks.brainseg_dmif.BrainSegDMIF``, for 2-D configurations.

    :class:`ModalityEncoders`, then :class:`~.prompt_free_decoder.PromptFreeDecoder`. Defaults are the paper's, ViT-B;
    with four modalities 353 million parameters, of which the encoders have 344.

    Images of another size than ``image_size`` are padded with zeros to a square of it or, where larger, shrunk
    bilinearly at their aspect ratio; logits come back on the images' grid. Intensities are taken as nnU-Net
    normalises them: zero mean and unit deviation, as SAM's own are.

    Args:
        input_channels: Of the images; each is a modality.
        num_classes: Output channels, background included unless they are regions.
        image_size: Side of the square the encoders see, in pixels; a multiple of the patch size.
        patch_size: Side of a token.
        embed_dim: Features of a token.
        depth: Blocks of an encoder.
        num_heads: Of a block.
        global_attention: Blocks that attend to the whole image, ascending; the last block is one of them.
        window_size: Side of the other blocks' windows, in tokens.
        out_channels: Of the fused features in the decoder; a multiple of 16.
        dmif: Fuse the encoders as they go (Table 3); else their mean is taken at the end.
        prompt_generator: Learn mask tokens in place of prompts (Table 3); else image features alone make the masks.
        upsampling_decoder: Upsample at three scales (Table 3); else as SAM does.
        modalities: Input channels that are seen, each by an encoder of its own (Table 2); all of them if left out.
        activation_checkpointing: Keep only the inputs of blocks in training, and compute blocks twice.
        conv_op: ``torch.nn.Conv2d``; plans name it.
        strides: ``[[1, 1], [4, 4], [4, 4]]``, from which nnU-Net computes the grids of deep supervision.
        deep_supervision: Give two resolutions of logits; nnU-Net switches it at ``decoder.deep_supervision``.

    Shape:
        ``(B, input_channels, height, width)`` to ``(B, num_classes, height, width)``, any size; under deep supervision
        a list of that and of ``(B, num_classes, height / 4, width / 4)``.

    Raises:
        ValueError: For numbers that do not fit each other, another ``conv_op``, or other strides.
    """

    resizes = True  # images of different sizes are different computations, so an exported network knows one

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
        """Logits, or a list of them."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Leave a module as it was made; nnU-Net calls it. He's initialisation is for rectified convolutions."""
