"""Stored soft labels in nnU-Net's data loader: cropped, padded and spatially augmented with the image they belong to.

nnU-Net's loader knows only images and segmentations. Soft labels are therefore additional channels of the image while
it is cropped and padded, and batchgeneratorsv2's ``regression_target`` while it is augmented: spatial transforms treat
both alike, and intensity transforms leave a regression target unchanged. One more channel marks the inside of the
volume, since voxels that an augmentation takes from outside have no soft label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunet_kd.distillation.step import SoftLabels
from nnunet_kd.teachers.soft_labels import SoftLabelStore


class ImageWithSoftLabels:
    """An image, its soft labels and a channel of ones as one array, read from disk only when indexed.

    Args:
        image: The image ``(channels, z, y, x)``, memory mapped.
        soft_labels: The soft labels ``(heads, z, y, x)``, memory mapped.
    """

    def __init__(self, image: Any, soft_labels: Any) -> None:
        self._parts = image, soft_labels
        self.shape = (image.shape[0] + soft_labels.shape[0] + 1, *image.shape[1:])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        """Return all channels of a crop as float32."""
        assert where[0] == slice(None), "a crop has all channels"
        image, soft_labels = (np.asarray(part[where], dtype=np.float32) for part in self._parts)
        return np.concatenate([image, soft_labels, np.ones((1, *image.shape[1:]), np.float32)])


class DatasetWithSoftLabels:
    """nnU-Net's data set with soft labels attached to its images.

    Args:
        dataset: nnU-Net's data set.
        store: The store with the soft labels of all its cases.
    """

    def __init__(self, dataset: Any, store: SoftLabelStore) -> None:
        self._dataset = dataset
        self._store = store
        self.identifiers: list[str] = dataset.identifiers

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, Any]:
        """Return image, segmentation, segmentation of the previous stage and properties, as nnU-Net does.

        Raises:
            ValueError: If the soft labels are damaged or have another shape than the image.
        """
        image, segmentation, previous, properties = self._dataset.load_case(identifier)
        soft_labels = stored_logits(self._store, identifier, image.shape)
        return ImageWithSoftLabels(image, soft_labels), segmentation, previous, properties


def stored_logits(store: SoftLabelStore, case: str, shape: Sequence[int]) -> Any:
    """Open the soft labels ``(heads, z, y, x)`` of a case, memory mapped.

    Args:
        store: The store.
        case: nnU-Net's identifier of the case.
        shape: The shape of its image, ``(channels, z, y, x)``.

    Raises:
        ValueError: If the soft labels are damaged or have another shape than the image.
    """
    soft_labels = store.open(case)
    if tuple(soft_labels.shape[1:]) != tuple(shape[1:]):
        raise ValueError(
            f"the soft labels {store.path(case)} have the shape {tuple(soft_labels.shape[1:])}, but the preprocessed "
            f"case has {tuple(shape[1:])}: make the soft labels again"
        )
    return soft_labels


class _SplitImage(BasicTransform):  # type: ignore[misc]  # untyped
    """Move the channels after those of the image into the regression target."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self._channels = image_channels

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        data_dict["regression_target"] = data_dict["image"][self._channels :]
        data_dict["image"] = data_dict["image"][: self._channels]
        return data_dict


class _JoinImage(BasicTransform):  # type: ignore[misc]  # untyped
    """Append the regression target to the image's channels, since a batch of the loader has no other place."""

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        data_dict["image"] = torch.cat((data_dict["image"], data_dict.pop("regression_target")))
        return data_dict


def with_soft_labels(transforms: BasicTransform, image_channels: int) -> BasicTransform:
    """Adapt nnU-Net's augmentation to images that carry soft labels.

    Args:
        transforms: nnU-Net's transforms.
        image_channels: The number of channels of the images without soft labels.
    """
    return ComposeTransforms([_SplitImage(image_channels), transforms, _JoinImage()])


def split_batch(images: Tensor, input_channels: int) -> tuple[Tensor, SoftLabels]:
    """Split a batch into the network's input and soft labels.

    Args:
        images: The ``data`` of a batch, ``(B, input_channels + heads + 1, *patch)``.
        input_channels: The number of the network's input channels.

    Returns:
        The input ``(B, input_channels, *patch)``, and the soft labels.
    """
    network_input, soft_labels, inside = torch.tensor_split(images, (input_channels, images.shape[1] - 1), dim=1)
    valid = inside > 0.999  # interpolated between ones only, up to rounding
    return network_input.contiguous(), SoftLabels(soft_labels, valid)
