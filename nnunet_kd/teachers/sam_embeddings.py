"""SAM's image embeddings of patches of slices, which the encoder of KD-SAM learns to reproduce.

The patches are those that nnU-Net's sliding window cuts from a slice. SAM treats each patch as a picture, resized to
SAM's input size, with up to three channels shown as red, green and blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

from nnunet_kd.teachers.sam import WINDOW, check_normalisation, medsam_input
from nnunet_kd.teachers.soft_labels import SoftLabelStore

STEP = 0.5  # the step of nnU-Net's sliding window, in patches
AT_ONCE = 4  # patches per batch; ViT-H's global attention takes 16 x 4096 x 4096 numbers for each

# nnU-Net's normalisation of photographs, which is undone so that SAM sees the original colours.
EXACT_COLOURS = "RGBTo01Normalization"


@dataclass(frozen=True)
class Colours:
    """The conversion of input channels to red, green and blue.

    Attributes:
        channels: The one to three input channels; fewer than three are repeated in turn.
        exact: Whether the values of each channel are colours from 0 to 1. The values of other channels are scaled so
            that 0..255 spans :data:`nnunet_kd.teachers.sam.WINDOW` of the patch.
    """

    channels: tuple[int, ...]
    exact: tuple[bool, ...]

    @classmethod
    def of(cls, schemes: Sequence[str], channels: Sequence[int] | None = None) -> Colours:
        """Create the conversion for images that nnU-Net normalised, by default from their first three channels.

        Args:
            schemes: nnU-Net's ``normalization_schemes``, one per channel.
            channels: The channels to use.

        Raises:
            ValueError: If there is no channel, there are more than three, or the images do not have one of them.
        """
        chosen = tuple(range(min(len(schemes), 3)) if channels is None else channels)
        if not 1 <= len(chosen) <= 3:
            raise ValueError(f"SAM takes one to three channels, got {len(chosen)}")
        for channel in chosen:
            if not 0 <= channel < len(schemes):
                raise ValueError(f"there is no channel {channel}: the images have {len(schemes)}")
        return cls(chosen, tuple(schemes[channel] == EXACT_COLOURS for channel in chosen))

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images ``(B, C, H, W)`` to colours ``(B, 3, H, W)`` from 0 to 255, in float32."""
        shown = []
        for channel, exact in zip(self.channels, self.exact, strict=True):
            values = images[:, channel].float()
            if not exact:
                flat = values.flatten(1)
                quantiles = torch.tensor(WINDOW, device=images.device) / 100
                low, high = (q[:, None, None] for q in torch.quantile(flat, quantiles, dim=1))
                values = (values - low) / (high - low).clamp(min=1e-8)
            shown.append(255 * values.clamp(0, 1))
        return torch.stack([shown[i % len(shown)] for i in range(3)], 1)


class SamEmbedder:
    """SAM's image encoder, which embeds a few patches at once.

    Args:
        sam: The model, from :func:`nnunet_kd.teachers.sam.load_sam`.
        colours: The conversion of the channels to colours.
        device: The device on which SAM runs, in half precision on CUDA.
        normalisation: As for :class:`nnunet_kd.teachers.sam.SamSettings`.

    Raises:
        ValueError: If the normalisation is unknown.
    """

    def __init__(self, sam: Any, colours: Colours, device: torch.device, normalisation: str = "sam") -> None:
        check_normalisation(normalisation)
        self._sam = sam.to(device)
        self._normalisation = normalisation
        self._colours = colours
        self._device = device

    @property
    def shape(self) -> tuple[int, int, int]:
        """The channels, height and width of an embedding."""
        side = self._sam.image_encoder.img_size // self._sam.image_encoder.patch_embed.proj.stride[0]
        return self._sam.prompt_encoder.embed_dim, side, side

    @property
    def image_size(self) -> int:
        """The side of SAM's square input in pixels."""
        size: int = self._sam.image_encoder.img_size
        return size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute the embeddings of patches.

        Args:
            images: The patches ``(B, C, H, W)``, normalised by nnU-Net.

        Returns:
            The embeddings ``(B, *shape)`` in float32 on the embedder's device.
        """
        framed = self._framed(self._colours(images.to(self._device)))
        with torch.autocast("cuda", enabled=self._device.type == "cuda"):
            parts = [self._sam.image_encoder(part).float() for part in torch.split(framed, AT_ONCE)]
        return torch.cat(parts)

    def _framed(self, colours: Tensor) -> Tensor:
        """Return the encoder's inputs ``(B, 3, side, side)``."""
        if self._normalisation == "medsam":
            pictures = colours.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            return torch.stack([medsam_input(picture, self.image_size) for picture in pictures]).to(self._device)
        from segment_anything.utils.transforms import ResizeLongestSide

        # The package's own apply_image_torch mistakes batch and channels for height and width.
        size = ResizeLongestSide.get_preprocess_shape(*colours.shape[2:], self.image_size)
        resized = F.interpolate(colours, size, mode="bilinear", align_corners=False, antialias=True)
        framed: Tensor = self._sam.preprocess(resized)
        return framed


class SlicePatches:
    """The patches that nnU-Net's sliding window cuts from the slices of a case, slice by slice.

    Args:
        shape: The shape ``(z, y, x)`` of the case.
        patch_size: The patch size ``(y, x)``. Smaller slices are padded on both sides, as in nnU-Net.
    """

    def __init__(self, shape: Sequence[int], patch_size: Sequence[int]) -> None:
        self._size = tuple(patch_size)
        self._before = [max(patch - side, 0) // 2 for side, patch in zip(shape[1:], patch_size, strict=True)]
        padded = tuple(max(side, patch) for side, patch in zip(shape[1:], patch_size, strict=True))
        rows, columns = compute_steps_for_sliding_window(padded, self._size, STEP)
        self.corners = [(z, y, x) for z in range(shape[0]) for y in rows for x in columns]

    def __len__(self) -> int:
        return len(self.corners)

    def cut(self, volume: Any, number: int, fill: float = 0) -> np.ndarray:
        """Cut one patch from a volume.

        Args:
            volume: The volume ``(C, z, y, x)``, which can be memory mapped.
            number: The number of the patch.
            fill: The value of voxels outside the slice.

        Returns:
            The patch ``(C, *patch_size)``.
        """
        slice_number, *corner = self.corners[number]
        # The coordinates are those of the slice; negative ones, and those beyond its end, are padding.
        starts = [begin - pad for begin, pad in zip(corner, self._before, strict=True)]
        inside = [
            slice(max(start, 0), min(start + size, side))
            for start, size, side in zip(starts, self._size, volume.shape[2:], strict=True)
        ]
        values = np.asarray(volume[:, slice_number, inside[0], inside[1]])
        patch = np.full((len(values), *self._size), fill, dtype=values.dtype)
        rows, columns = (slice(s.start - start, s.stop - start) for s, start in zip(inside, starts, strict=True))
        patch[:, rows, columns] = values
        return patch


class EmbeddingStore(SoftLabelStore):
    """A store of SAM's embeddings, with one file ``(patches, channels, height, width)`` per case."""

    marker: ClassVar[str] = "_embeddings_"
    content: ClassVar[str] = "embeddings"

    def _layout(self, shape: tuple[int, ...], patch_size: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Return blocks and chunks of one patch each, because patches are read one at a time."""
        one = (1, *shape[1:])
        return one, one

    @property
    def arguments(self) -> str:
        """The arguments of ``nnunet_kd soft-labels`` that compute the embeddings again from the same source."""
        source = self.manifest.get("source", {})
        channels = " ".join(map(str, source.get("channels", [])))
        model = source.get("model_type", "vit_h")
        other = f" --normalisation {source['normalisation']}" if "normalisation" in source else ""
        return f"--embeddings --sam {model} --checkpoint FILE --channels {channels}{other} --name {self.name}"
