"""Showing a student's patches to a teacher that was trained on other inputs and for other outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nnunet_kd.networks.stages import encoder_stages, has_encoder_stages
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.settings import BLOCK, TeacherSettings
from nnunet_kd.teachers.mapping import ChannelMap, LabelMap

CLOSE = 1e-3  # relative difference below which spacings are equal


@dataclass(frozen=True)
class Window:
    """The map from a student's CT intensities to a teacher's, which were normalised by statistics of other data.

    Attributes:
        scale: The factor.
        shift: The summand.
        lowest: The lowest intensity that the teacher sees.
        highest: The highest intensity that the teacher sees.
    """

    scale: float
    shift: float
    lowest: float
    highest: float

    def __call__(self, intensities: Tensor) -> Tensor:
        """Map intensities of any shape."""
        return (intensities * self.scale + self.shift).clamp(self.lowest, self.highest)


@dataclass(frozen=True)
class Adaptation:
    """The differences between a teacher's inputs and outputs and its student's.

    Attributes:
        channels: The teacher's channel for each of the student's.
        labels: The teacher's structures for each of the student's.
        zoom: The number of the teacher's voxels along one of the student's, for each axis (z, y, x).
        windows: The map of intensities for each of the student's channels; ``None`` leaves a channel as it is.
        voxels: The most voxels that the teacher sees at once, those of a batch of its own training.
        normalised: The names of the intensity normalisations, the teacher's and the student's, if they differ.
    """

    channels: ChannelMap
    labels: LabelMap
    zoom: tuple[float, ...]
    windows: tuple[Window | None, ...]
    voxels: int
    normalised: tuple[str, str] | None = None

    @classmethod
    def between(cls, teacher: Experiment, student: Experiment, settings: TeacherSettings) -> Adaptation:
        """Find the differences.

        Raises:
            ValueError: If the channels or the labels cannot be mapped; the message names the setting.
        """
        where = f"{BLOCK}.teacher.channels"
        try:
            channels = ChannelMap.of(settings.channels, teacher.dataset_json, student.dataset_json)
            where = f"{BLOCK}.teacher.label_map"
            labels = LabelMap.of(settings.label_map, teacher.dataset_json, student.dataset_json)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        theirs, ours = _configuration(teacher), _configuration(student)
        zoom = [float(own) / float(given) for own, given in zip(ours["spacing"], theirs["spacing"], strict=True)]
        schemes = [theirs["normalization_schemes"][number] for number in channels.channels]
        own_schemes = list(ours["normalization_schemes"])
        both_ct = [one == own == _CT for one, own in zip(schemes, own_schemes, strict=True)]
        return cls(
            channels,
            labels,
            tuple(1.0 if math.isclose(factor, 1, rel_tol=CLOSE) else factor for factor in zoom),
            tuple(
                _window(_statistics(teacher, number), _statistics(student, own)) if ct else None
                for own, (number, ct) in enumerate(zip(channels.channels, both_ct, strict=True))
            ),
            math.prod(theirs["patch_size"]) * int(theirs.get("batch_size", 1)),
            None if schemes == own_schemes else (", ".join(schemes), ", ".join(own_schemes)),
        )

    @property
    def mixing(self) -> Tensor:
        """The linear map from the teacher's logits to the student's that is nearest to :attr:`labels`.

        Shape:
            ``(student's heads, teacher's heads)``.
        """
        mixed = torch.zeros(len(self.labels.student.labels), len(self.labels.teacher.labels))
        for row, heads, values in zip(mixed, self.labels.groups, self.labels.student.labels, strict=True):
            if values == {0}:  # also of structures that nothing names, whose channels are of no use to the student
                row[[head for head in heads if self.labels.teacher.labels[head] == {0}]] = 1
            else:
                row[list(heads)] = 1 / len(heads)
                if self.labels.student.are_regions and not self.labels.teacher.are_regions:
                    row[0] -= 1  # the logit of a region is that of its labels, compared with the background's
        return mixed

    def images(self, images: Tensor, network: nn.Module) -> Tensor:
        """Return the images of a student as its teacher sees them.

        They are resampled to the teacher's spacing, but to no more than :attr:`voxels`.

        Args:
            images: Augmented patches of the student, ``(B, channels, *spatial)``.
            network: The teacher's network, whose strides divide the size of the result.
        """
        if any(self.windows):
            pairs = zip(images.unbind(1), self.windows, strict=True)
            parts = [one if window is None else window(one) for one, window in pairs]
            images = torch.stack(parts, 1)
        size = self._size(images, network)
        return images if size == list(images.shape[2:]) else resampled(images, size)

    def logits(self, logits: Tensor) -> Tensor:
        """Map the teacher's logits ``(B, heads, *spatial)`` to logits of the student's heads on the same grid."""
        return self.labels(logits, 1)

    def _size(self, images: Tensor, network: nn.Module) -> list[int]:
        """Return the size of the images that the teacher sees."""
        own = list(images.shape[2:])
        if not has_encoder_stages(network) or all(factor == 1 for factor in self.zoom):
            return own
        wanted = [side * factor for side, factor in zip(own, self.zoom, strict=True)]
        excess = len(images) * math.prod(wanted) / self.voxels
        least = max(1.0, excess) ** (1 / len(own))
        strides = encoder_stages(network).strides[-1]
        return [max(1, round(side / least / step)) * step for side, step in zip(wanted, strides, strict=True)]

    def describe(self) -> list[str]:
        """Describe the differences, one clause per difference."""
        found = []
        if not self.channels.is_identity:
            names = [self.channels.names[number] for number in self.channels.channels]
            without = [self.channels.names[number] for number in self.channels.missing]
            found.append(f"channels {', '.join(names)}" + (f" without {', '.join(without)}" if without else ""))
        if not self.labels.is_identity:
            given = "; ".join(f"{name} from {', '.join(theirs)}" for name, theirs in self.labels.description.items())
            found.append(f"structures {given}")
        if any(factor != 1 for factor in self.zoom):
            found.append(f"{' x '.join(f'{factor:.3g}' for factor in self.zoom)} of its voxels in one of the student's")
        if self.normalised is not None:
            found.append(f"normalised by {self.normalised[0]}, the student by {self.normalised[1]}")
        return found


class AdaptedTeacher(nn.Module):
    """A teacher that answers for a student's patches with logits of the student's heads on the student's grid.

    Args:
        network: The teacher's network, which reads the student's channels; see :func:`take_channels`.
        adaptation: The differences to the student.
    """

    def __init__(self, network: nn.Module, adaptation: Adaptation) -> None:
        super().__init__()
        self.network = network
        self._adaptation = adaptation

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, student's heads, *spatial)`` for images ``(B, student's channels, *spatial)``."""
        logits = self.network(self._adaptation.images(images, self.network))
        mapped = self._adaptation.logits(logits if isinstance(logits, Tensor) else logits[0])
        return mapped if mapped.shape[2:] == images.shape[2:] else resampled(mapped, images.shape[2:])


def resampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample ``(B, channels, *spatial)`` linearly to another size; the outer borders stay where they are."""
    mode = ("linear", "bilinear", "trilinear")[maps.dim() - 3]
    return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=False)


@torch.no_grad()
def take_channels(network: nn.Module, weights: Mapping[str, int], channels: Sequence[int]) -> None:
    """Remove input channels of a network in place, which has the effect of filling them with zeros.

    Zero is the mean of images that are normalised by their mean and standard deviation.

    Args:
        network: The network.
        weights: The name of each weight that has an axis for the input channels -> this axis.
        channels: The numbers of the channels that stay, in their new order.

    Raises:
        ValueError: If a layer that reads the input is not a convolution over all channels.
    """
    changed: set[int] = set()
    for name, axis in weights.items():
        layer: Any = network.get_submodule(name.rpartition(".")[0])
        plain = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) and layer.groups == 1
        if not plain or axis != 1 or not name.endswith(".weight"):
            raise ValueError(f"{name} depends on the number of input channels, but is not the weight of a convolution")
        if id(layer) not in changed:  # nnU-Net's decoder holds the encoder too
            changed.add(id(layer))
            layer.weight.data = layer.weight.data.index_select(1, torch.tensor(channels, device=layer.weight.device))
            layer.in_channels = len(channels)


def differing_axes(shapes: Mapping[str, torch.Size], others: Mapping[str, torch.Size]) -> dict[str, int]:
    """Map the name of each tensor whose shape differs between two networks to the first axis that differs."""
    return {
        name: next(axis for axis, sizes in enumerate(zip(shape, others[name], strict=True)) if sizes[0] != sizes[1])
        for name, shape in shapes.items()
        if shape != others[name]
    }


_CT = "CTNormalization"


def _configuration(experiment: Experiment) -> dict[str, Any]:
    found: dict[str, Any] = PlansManager(experiment.plans).get_configuration(experiment.configuration).configuration
    return found


def _statistics(experiment: Experiment, channel: int) -> Mapping[str, float]:
    found: Mapping[str, float] = PlansManager(experiment.plans).foreground_intensity_properties_per_channel[
        str(channel)
    ]
    return found


def _window(theirs: Mapping[str, float], ours: Mapping[str, float]) -> Window | None:
    """Return the map from CT intensities normalised by ``ours`` to those normalised by ``theirs``."""
    keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
    if all(math.isclose(theirs[key], ours[key], rel_tol=CLOSE) for key in keys):
        return None
    spread = max(theirs["std"], 1e-8)  # as in nnU-Net's CTNormalization
    lowest, highest = ((theirs[key] - theirs["mean"]) / spread for key in keys[2:])
    return Window(max(ours["std"], 1e-8) / spread, (ours["mean"] - theirs["mean"]) / spread, lowest, highest)
