"""nnU-Net's augmentation, reduced to what a paper does."""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

_INTENSITY = (
    ContrastTransform,
    GammaTransform,
    GaussianBlurTransform,
    GaussianNoiseTransform,
    SimulateLowResolutionTransform,
)


def reduce_augmentation(transforms: Any, augmentation: str) -> None:
    """Reduce nnU-Net's augmentation to mirroring and one more, with nnU-Net's ranges and probabilities.

    Everything that is no augmentation stays, such as the crop to the patch, masks, and the previous stage of a cascade.

    Args:
        transforms: nnU-Net's composed transforms, changed in place.
        augmentation: ``"flips_and_brightness"`` or ``"flips_and_rotations"``.
    """
    rotates = augmentation == "flips_and_rotations"
    left_out = (*_INTENSITY, MultiplicativeBrightnessTransform) if rotates else _INTENSITY
    transforms.transforms = [one for one in transforms.transforms if not isinstance(_applied(one), left_out)]
    for one in transforms.transforms:
        if isinstance(one, SpatialTransform):  # it also crops
            one.p_scaling = one.p_elastic_deform = 0
            if not rotates:
                one.p_rotation = 0


def _applied(transform: Any) -> Any:
    """Return the transform that is applied with some probability."""
    return transform.transform if isinstance(transform, RandomTransform) else transform
