"""What the plans and ``dataset.json`` of a model say about preprocessing and export, checked and without nnU-Net."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files.error_reasons import first_line
from .resampling import NO_RESAMPLING, Resampling

NORMALIZATIONS = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
READERS = (
    "SimpleITKIO",
    "SimpleITKIOWithReorient",
    "NaturalImage2DIO",
    "Tiff3DIO",
    "NibabelIO",
    "NibabelIOWithReorient",
)
_INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")


class UnknownPartError(ValueError):
    """A model needs a part that is not nnU-Net's own; the message is one sentence that names it and the file."""


@dataclass(frozen=True)
class Normalization:
    """The normalisation of one channel.

    Attributes:
        scheme: One of :data:`NORMALIZATIONS`.
        inside_mask: Whether a z-score considers and changes only voxels inside the nonzero mask.
        intensities: Mean, standard deviation and percentiles of the training's foreground, for CT.
    """

    scheme: str
    inside_mask: bool
    intensities: Mapping[str, float]


@dataclass(frozen=True)
class Labels:
    """The labels of a model.

    Attributes:
        names: The name of every label or region, with its value or values.
        heads: The number of channels of the logits.
        region_order: For regions, the label that each channel writes, in this order; otherwise ``None``.
        foreground: The number of labels other than background.
    """

    names: Mapping[str, int | tuple[int, ...]]
    heads: int
    region_order: tuple[int, ...] | None
    foreground: int


@dataclass(frozen=True)
class Pipeline:
    """How nnU-Net prepares the images of a model and exports its logits.

    Attributes:
        reader: One of :data:`READERS`.
        file_ending: The ending of images and segmentations.
        channels: The names of the channels.
        labels: The labels or regions.
        transpose: For every axis of the model's grid, the axis of the image.
        spacing: The voxel size of the model's grid in mm, in the order of its axes; two numbers for slices.
        normalizations: One normalisation per channel.
        image_resampling: How images are resampled to the model's grid.
        logits_resampling: How logits are resampled to the grid of the image.
    """

    reader: str
    file_ending: str
    channels: tuple[str, ...]
    labels: Labels
    transpose: tuple[int, ...]
    spacing: tuple[float, ...]
    normalizations: tuple[Normalization, ...]
    image_resampling: Resampling
    logits_resampling: Resampling


def read_pipeline(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str, folder: Path
) -> Pipeline:
    """Return what the plans and ``dataset.json`` of a model say.

    Args:
        plans: The content of ``plans.json``.
        dataset_json: The content of ``dataset.json``.
        configuration: The configuration of the model.
        folder: The folder of both files, for messages.

    Raises:
        ValueError: If an entry is missing or impossible; the message names the file.
        UnknownPartError: If the model needs a reader, a normalisation or a resampling that is not nnU-Net's.
    """
    with _damage(folder / "dataset.json", "is not a valid dataset.json of nnU-Net"):
        ending = _text(dataset_json["file_ending"], "file_ending")
        names = dataset_json.get("channel_names", dataset_json.get("modality"))
        channels = tuple(str(names[key]) for key in sorted(names, key=int))
        labels = _labels(dataset_json["labels"], dataset_json.get("regions_class_order"))
    path = folder / "plans.json"
    with _damage(path, "contains plans that nnU-Net cannot use"):
        chosen = _inherited(plans["configurations"], configuration)
        transpose = tuple(int(axis) for axis in plans["transpose_forward"])
        if sorted(transpose) != [0, 1, 2]:
            raise ValueError(f"transpose_forward must be an order of three axes, got {list(transpose)}")
        spacing = tuple(float(size) for size in chosen["spacing"])
        if len(spacing) not in (2, 3) or not all(0 < size < math.inf for size in spacing):
            raise ValueError(f"spacing must be two or three sizes above 0, got {list(spacing)}")
        _known("preprocessor", chosen["preprocessor_name"], ("DefaultPreprocessor",), path)
        _known("label manager", plans.get("label_manager", "LabelManager"), ("LabelManager",), path)
        pipeline = Pipeline(
            reader=_known("reader", plans["image_reader_writer"], READERS, path),
            file_ending=ending,
            channels=channels,
            labels=labels,
            transpose=transpose,
            spacing=spacing,
            normalizations=tuple(_normalization(plans, chosen, channel, path) for channel in range(len(channels))),
            image_resampling=_resampling(chosen, "resampling_fn_data", path),
            logits_resampling=_resampling(chosen, "resampling_fn_probabilities", path),
        )
        if pipeline.logits_resampling.order > 1 or pipeline.logits_resampling.order_z > 1:
            raise UnknownPartError(f"{path} resamples logits with splines: predict with nnUNetv2_predict")
        return pipeline


@contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Turn any error about the content of a file into one sentence."""
    try:
        yield
    except UnknownPartError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else first_line(error)
        raise ValueError(f"{path} {what}: {reason}") from error


def _known(what: str, name: Any, known: tuple[str, ...], path: Path) -> str:
    if name not in known:
        raise UnknownPartError(
            f"{path} asks for the {what} {str(name)[:60]!r}, but prediction without PyTorch knows only "
            f"{', '.join(known)}: predict with nnUNetv2_predict"
        )
    return str(name)


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits from others."""
    chain: list[str] = []
    while name is not None:
        if name in chain:
            raise ValueError(f"the configurations {', '.join(chain)} inherit from one another")
        if name not in configurations:
            raise ValueError(f"there is no configuration {str(name)[:60]}")
        chain.append(name)
        name = configurations[name].get("inherits_from")
    return {key: value for one in reversed(chain) for key, value in configurations[one].items()}


def _normalization(plans: Mapping[str, Any], chosen: Mapping[str, Any], channel: int, path: Path) -> Normalization:
    scheme = _known("normalisation", chosen["normalization_schemes"][channel], NORMALIZATIONS, path)
    kind = "foreground_intensity_properties_per_channel"
    known = plans[kind] if kind in plans else plans["foreground_intensity_properties_by_modality"]
    wanted = _INTENSITIES if scheme == "CTNormalization" else ()
    intensities = {name: float(known[str(channel)][name]) for name in wanted}
    return Normalization(scheme, bool(chosen["use_mask_for_norm"][channel]), intensities)


def _resampling(chosen: Mapping[str, Any], kind: str, path: Path) -> Resampling:
    """Return one of nnU-Net's ways to resample; PyTorch's is a linear one."""
    torch = "resample_torch_fornnunet"
    known = ("resample_data_or_seg_to_shape", torch, "no_resampling_hack")
    name = _known("resampling", chosen[kind], known, path)
    if name == "no_resampling_hack":
        return NO_RESAMPLING
    given = dict(chosen[f"{kind}_kwargs"])
    threshold = float(given.get("separate_z_anisotropy_threshold", 3))
    if name == torch:
        if given.get("mode", "linear") != "linear" or given.get("aniso_axis_mode", "nearest-exact") != "nearest-exact":
            raise UnknownPartError(f"{path} resamples in a mode that only PyTorch knows: predict with nnUNetv2_predict")
        return Resampling(1, 0, _separate(given.get("force_separate_z")), threshold)
    order, order_z = (int(given.get(key, usual)) for key, usual in (("order", 3), ("order_z", 0)))
    if given.get("is_seg") or not (0 <= order <= 5 and 0 <= order_z <= 5):
        raise ValueError(f"{kind}_kwargs must ask for splines of order 0 to 5, got {str(given)[:80]}")
    return Resampling(order, order_z, _separate(given.get("force_separate_z", False)), threshold)


def _separate(value: Any) -> bool | None:
    if value not in (None, True, False):
        raise ValueError(f"force_separate_z must be true, false or null, got {str(value)[:60]}")
    return None if value is None else bool(value)


def _labels(names: Mapping[str, Any], order: Any) -> Labels:
    """Check the labels as nnU-Net's label manager does."""
    values = {
        name: tuple(map(_whole, value)) if isinstance(value, list | tuple) else _whole(value)
        for name, value in names.items()
        if name != "ignore"
    }
    if values.get("background") != 0:
        raise ValueError(f"the label 'background' must be 0, got {str(names.get('background', 'none'))[:60]}")
    every = {one for value in values.values() for one in _several(value)}
    if not any(isinstance(value, tuple) and len(value) > 1 for value in values.values()):
        return Labels(values, len(every), None, len(every - {0}))
    regions = [value for value in values.values() if set(_several(value)) != {0}]
    if not isinstance(order, list) or len(order) != len(regions):
        raise ValueError(f"regions_class_order must list a label for each of the {len(regions)} regions")
    return Labels(values, len(regions), tuple(map(_whole, order)), len(every - {0}))


def _several(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _whole(value: Any) -> int:
    number = int(value)
    if (isinstance(value, float) and number != value) or not 0 <= number < 2**16:
        raise ValueError(f"a label must be a whole number from 0 to {2**16 - 1}, got {str(value)[:60]}")
    return number


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value
