"""The Segment Anything Model as a teacher, which maps a volume and its labels to one map of logits per structure.

Kirillov et al., "Segment Anything", 2023, through the ``segment_anything`` package, used as in SAM-DRA-UNet, section
3.2. SAM segments the object that a prompt marks in an RGB image; slices serve as images, and the training labels
provide the prompts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from nnunet_kd.nnunet.trust.archives import check_stored

PROMPTS = ("box", "points")
NORMALISATIONS = ("sam", "medsam")

# The logit of a structure that is not in a slice, for which SAM is not run. Its sigmoid is 4.5e-5.
ABSENT = -10.0

# The percentiles of a channel's body voxels that are mapped to the intensities 0 and 255.
WINDOW = (0.5, 99.5)


@dataclass(frozen=True)
class SamSettings:
    """The settings with which SAM is prompted, which are stored with the soft labels.

    Attributes:
        model_type: The key in ``segment_anything.sam_model_registry``: ``vit_b``, ``vit_l`` or ``vit_h``.
        channels: The input channels that become red, green and blue; fewer than three are repeated in turn.
        prompt: ``"box"`` for a box around each connected component of the slice, ``"points"`` for its innermost voxel.
        margin: The number of voxels by which a box is enlarged on each side.
        normalisation: ``"sam"`` for SAM's own input: the longest side resized to the encoder's, and the mean and
            deviation of its photographs. ``"medsam"`` for :func:`medsam_input`.
    """

    model_type: str = "vit_b"
    channels: tuple[int, ...] = (0,)
    prompt: str = "box"
    margin: int = 2
    normalisation: str = "sam"

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise ValueError(f"the prompt must be one of {', '.join(PROMPTS)}, got {self.prompt!r}")
        if not 1 <= len(self.channels) <= 3:
            raise ValueError(f"SAM takes one to three channels, got {len(self.channels)}")
        if self.margin < 0:
            raise ValueError(f"the margin of boxes must be at least 0, got {self.margin}")
        check_normalisation(self.normalisation)

    def described(self) -> dict[str, Any]:
        """Return the settings for a store's manifest; those of earlier versions have no normalisation."""
        settings = asdict(self)
        if self.normalisation == "sam":
            del settings["normalisation"]
        return settings


def check_normalisation(normalisation: str) -> None:
    """Refuse a normalisation that does not exist.

    Raises:
        ValueError: If it is none of :data:`NORMALISATIONS`.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"the normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")


def load_sam(model_type: str, checkpoint: Path) -> Any:
    """Load SAM onto the CPU and freeze it, with weights in the published format.

    Raises:
        ValueError: If the type is unknown, the file is not a state dict of this type, or a weight is not finite.
        FileNotFoundError: If the checkpoint does not exist.
    """
    from segment_anything import sam_model_registry

    if model_type not in sam_model_registry:
        raise ValueError(f"segment_anything has no model {model_type!r}, only {', '.join(sorted(sam_model_registry))}")
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    check_stored(checkpoint)
    try:
        # Only files written by PyTorch 1.6 or later can be memory mapped.
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(checkpoint))
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(f"cannot read {checkpoint}: it is damaged, or contains more than weights") from error
    sam = sam_model_registry[model_type](checkpoint=None)
    try:
        sam.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{checkpoint} does not contain the weights of {model_type}") from error
    for name, weight in sam.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weights in {checkpoint} are not finite: {name}")
    return sam.eval().requires_grad_(False)


class SamTeacher:
    """A teacher that runs SAM slice by slice and computes each slice's embedding once for all prompts.

    Args:
        sam: The model, from :func:`load_sam`.
        settings: The settings of the prompts.
        device: The device on which SAM runs, in half precision on CUDA.
        prompts_at_once: The number of prompts that are decoded in one batch.
    """

    def __init__(self, sam: Any, settings: SamSettings, device: torch.device, prompts_at_once: int = 32) -> None:
        from segment_anything import SamPredictor

        self.settings = settings
        self.device = device
        self._prompts_at_once = prompts_at_once
        self._predictor = SamPredictor(sam.to(device))

    def logits(self, images: np.ndarray, structures: np.ndarray, body: np.ndarray, axis: int) -> np.ndarray:
        """Compute SAM's mask logits of every structure, with the maximum over its components at each voxel.

        The logit is :data:`ABSENT` in slices that do not contain the structure. Slices without any structure are not
        passed to SAM.

        Args:
            images: The images ``(channels, z, y, x)``.
            structures: The boolean masks of the structures ``(K, z, y, x)``, from the labels.
            body: The boolean mask ``(z, y, x)`` of the voxels that determine the intensity window.
            axis: The axis of ``(z, y, x)`` along which the volume is sliced.

        Returns:
            The logits ``(K, z, y, x)`` in float32.

        Raises:
            ValueError: If the images do not have one of the channels.
        """
        for channel in self.settings.channels:
            if not 0 <= channel < len(images):
                raise ValueError(f"there is no channel {channel}: the images have {len(images)}")
        red_green_blue = as_rgb(images[list(self.settings.channels)], body)
        slices = np.moveaxis(red_green_blue, axis + 1, 0)  # (slices, 3, height, width)
        present = np.moveaxis(structures, axis + 1, 0)
        result = np.full(structures.shape, ABSENT, dtype=np.float32)
        answers = np.moveaxis(result, axis + 1, 0)
        for number in range(len(slices)):
            if present[number].any():
                answers[number] = self.slice_logits(slices[number], present[number])
        return result

    @torch.inference_mode()
    def slice_logits(self, image: np.ndarray, structures: np.ndarray) -> np.ndarray:
        """Compute SAM's mask logits of every structure in one slice.

        Args:
            image: The slice ``(3, height, width)`` in uint8.
            structures: The boolean masks of the structures ``(K, height, width)``.

        Returns:
            The logits ``(K, height, width)`` in float32; :data:`ABSENT` for structures that are not in the slice.
        """
        places = [component_places(one, self.settings.prompt, self.settings.margin) for one in structures]
        owners = np.repeat(np.arange(len(structures)), [len(entry) for entry in places])
        result = np.full(structures.shape, ABSENT, dtype=np.float32)
        if not len(owners):
            return result
        prompts = torch.from_numpy(np.concatenate([entry for entry in places if len(entry)])).to(self.device)
        with self._precision():
            self._show(np.ascontiguousarray(image.transpose(1, 2, 0)))
            parts = [self._decode(part) for part in torch.split(prompts, self._prompts_at_once)]
        masks = torch.cat(parts).cpu().float().numpy()
        for owner in np.unique(owners):
            result[owner] = masks[owners == owner].max(0)
        return result

    def _show(self, image: np.ndarray) -> None:
        """Compute the embedding of a slice, ``(height, width, 3)``, for the prompts that follow."""
        predictor: Any = self._predictor
        if self.settings.normalisation == "sam":
            predictor.set_image(image)
            return
        encoder = predictor.model.image_encoder
        side: int = encoder.img_size
        predictor.features = encoder(medsam_input(image, side)[None].to(self.device))
        predictor.original_size, predictor.input_size, predictor.is_image_set = image.shape[:2], (side, side), True

    def _in_frame(self, places: Tensor) -> Tensor:
        """Map x and y ``(..., 2)`` from voxels of the slice to pixels of SAM's input."""
        predictor: Any = self._predictor
        if self.settings.normalisation == "sam":
            mapped: Tensor = predictor.transform.apply_coords_torch(places, predictor.original_size)
            return mapped
        height, width = predictor.original_size
        side = predictor.model.image_encoder.img_size
        return places * places.new_tensor([side / width, side / height])

    def _decode(self, prompts: Tensor) -> Tensor:
        """Compute the mask logits ``(N, height, width)`` of prompts in the current slice."""
        predictor: Any = self._predictor
        if self.settings.prompt == "box":
            boxes = self._in_frame(prompts.reshape(-1, 2, 2)).reshape(-1, 4)
            masks, _, _ = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
            single: Tensor = masks[:, 0]
            return single
        points = self._in_frame(prompts[:, None])
        inside = torch.ones(points.shape[:2], dtype=torch.int, device=points.device)
        # A point is ambiguous, so SAM returns three masks; the one with the highest predicted quality is used.
        masks, quality, _ = predictor.predict_torch(points, inside, multimask_output=True, return_logits=True)
        best: Tensor = masks[torch.arange(len(masks), device=masks.device), quality.argmax(1)]
        return best

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()


def as_rgb(channels: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Convert one to three channels to red, green and blue in uint8, each with :data:`WINDOW` of its body voxels.

    Args:
        channels: The channels ``(1 to 3, z, y, x)``.
        body: The boolean mask of the body ``(z, y, x)``; if it is empty, all voxels are used.

    Returns:
        The colours ``(3, z, y, x)``; fewer than three channels are repeated in turn.
    """
    windowed = []
    for channel in channels:
        low, high = np.percentile(channel[body] if body.any() else channel, WINDOW)
        scaled = (channel - low) / max(float(high - low), 1e-8)
        windowed.append((255 * np.clip(scaled, 0, 1)).round().astype(np.uint8))
    return np.stack([windowed[i % len(windowed)] for i in range(3)])


def medsam_input(image: np.ndarray, side: int) -> Tensor:
    """Return what MedSAM's published inference gives to its encoder, which is SAM's with other weights.

    Ma et al., "Segment anything in medical images", Nature Communications 2024. The slice is stretched to a square by
    cubic interpolation and scaled to 0..1; SAM's mean and deviation are not used.

    Args:
        image: The slice ``(height, width, 3)`` in uint8.
        side: The side of the encoder's input in pixels (1024).

    Returns:
        The input ``(3, side, side)`` in float32.
    """
    from skimage.transform import resize

    stretched = resize(image, (side, side), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    low, high = stretched.min(), stretched.max()
    scaled = (stretched - low) / max(int(high) - int(low), 1e-8)
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)


def component_places(structure: np.ndarray, prompt: str, margin: int) -> np.ndarray:
    """Return one prompt, in voxels, for each connected component of a structure in a slice.

    Args:
        structure: The boolean mask ``(height, width)``; voxels that touch at a corner are connected.
        prompt: ``"box"`` or ``"points"``.
        margin: The margin of boxes in voxels; boxes are clipped at the border of the slice.

    Returns:
        The prompts in float32: boxes ``(N, 4)``, given by x and y of the first and of the last voxel, or points
        ``(N, 2)``, given by x and y of the voxel farthest from the component's border.
    """
    labelled, count = ndimage.label(structure, structure=np.ones((3, 3), dtype=int))
    places: list[Sequence[float]] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
        if prompt == "box":
            height, width = structure.shape
            left, top = max(columns.start - margin, 0), max(rows.start - margin, 0)
            right, bottom = min(columns.stop - 1 + margin, width - 1), min(rows.stop - 1 + margin, height - 1)
            places.append((left, top, right, bottom))
        else:
            component = np.pad(labelled[rows, columns] == number, 1)
            depth = ndimage.distance_transform_edt(component)[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            places.append((columns.start + int(column), rows.start + int(row)))
    return np.array(places, dtype=np.float32).reshape(count, 4 if prompt == "box" else 2)
