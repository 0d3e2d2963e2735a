"""Stored soft labels in nnU-Net's data loader: cut, padded and spatially augmented with the image they belong to.

nnU-Net's loader knows images and segmentations. So soft labels travel as further channels of the image wherever it
only cuts and pads, and as batchgeneratorsv2's ``regression_target`` wherever images are augmented: every spatial
transform treats both alike, and no intensity transform touches a regression target. One more channel marks what lies
inside the volume; where an augmentation looks beyond it there is no soft label to follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunet_kd.distillation.step import SoftLabels
from nnunet_kd.teachers.soft_labels import SoftLabelStore


class ImageWithSoftLabels:
    """Channels of an image, of its soft labels, and a 1 inside the volume, as one array that is read where indexed.

    Args:
        image: ``(channels, z, y, x)``, memory mapped.
        soft_labels: ``(heads, z, y, x)``, memory mapped.
    """

    def __init__(self, image: Any, soft_labels: Any) -> None:
        self._parts = image, soft_labels
        self.shape = (image.shape[0] + soft_labels.shape[0] + 1, *image.shape[1:])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        """The cut, all channels of it, float32."""
        assert where[0] == slice(None), "a cut has all channels"
        image, soft_labels = (np.asarray(part[where], dtype=np.float32) for part in self._parts)
        return np.concatenate([image, soft_labels, np.ones((1, *image.shape[1:]), np.float32)])


class DatasetWithSoftLabels:
    """nnU-Net's data set, whose images carry soft labels.

    Args:
        dataset: nnU-Net's.
        store: Has all its cases.
    """

    def __init__(self, dataset: Any, store: SoftLabelStore) -> None:
        self._dataset = dataset
        self._store = store
        self.identifiers: list[str] = dataset.identifiers

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, Any]:
        """As nnU-Net's: image, segmentation, that of the stage before, properties.

        Raises:
            ValueError: For soft labels that are damaged or of another shape.
        """
        image, segmentation, previous, properties = self._dataset.load_case(identifier)
        soft_labels = self._store.open(identifier)
        if tuple(soft_labels.shape[1:]) != tuple(image.shape[1:]):
            raise ValueError(
                f"the soft labels {self._store.path(identifier)} are {tuple(soft_labels.shape[1:])}, the preprocessed "
                f"case is {tuple(image.shape[1:])}"
            )
        return ImageWithSoftLabels(image, soft_labels), segmentation, previous, properties


class _SplitImage(BasicTransform):  # type: ignore[misc]  # untyped
    """Channels after the first few become the regression target."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self._channels = image_channels

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        data_dict["regression_target"] = data_dict["image"][self._channels :]
        data_dict["image"] = data_dict["image"][: self._channels]
        return data_dict


class _JoinImage(BasicTransform):  # type: ignore[misc]  # untyped
    """The regression target becomes the last channels of the image, for the loader's batch has no other place."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        data_dict["image"] = torch.cat((data_dict["image"], data_dict.pop("regression_target")))
        return data_dict


def with_soft_labels(transforms: BasicTransform, image_channels: int) -> BasicTransform:
    """nnU-Net's augmentation for images that carry soft labels.

    Args:
        transforms: nnU-Net's.
        image_channels: Of the images alone.
    """
    return ComposeTransforms([_SplitImage(image_channels), transforms, _JoinImage()])


def split_batch(images: Tensor, input_channels: int) -> tuple[Tensor, SoftLabels]:
    """Split a batch into what the network sees and soft labels.

    Args:
        images: ``data`` of a batch, ``(B, input_channels + heads + 1, *patch)``.
        input_channels: Of the network.

    Returns:
        ``(B, input_channels, *patch)``, and the soft labels.
    """
    network_input, soft_labels, inside = torch.tensor_split(images, (input_channels, images.shape[1] - 1), dim=1)
    valid = inside > 0.999  # interpolation between ones, up to rounding
    return network_input.contiguous(), SoftLabels(soft_labels, valid)
