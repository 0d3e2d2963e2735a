"""The cases of a prediction: find them under nnU-Net's names, and read their images, or say what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files.error_reasons import reason
from .files.image_names import channel_of, images_by_case, in_order
from .files.integrity import check_whole
from .plans import Pipeline
from .preprocessing import Grid, preprocess
from .readers import FORMATS, Header


@dataclass(frozen=True)
class PredictionCase:
    """One case to predict.

    Attributes:
        name: The name of the case.
        images: The image file of every channel.
        target: The path of the segmentation without its file ending.
    """

    name: str
    images: tuple[Path, ...]
    target: Path


def find_cases(images: Path, output: Path, ending: str, channels: int) -> list[PredictionCase]:
    """Find the cases in a folder that follows nnU-Net's naming, or the case of one file.

    Args:
        images: A folder of ``CASE_0000ENDING`` files, or one file: either the first channel of a case with such a name,
            or any image that holds all channels.
        output: The folder of the segmentations; for one file, it can be the path of the segmentation.
        ending: The file ending of images and segmentations.
        channels: The number of channels of a case.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If a case has a missing or additional channel; the message names it.
    """
    if images.is_file():
        return [_case_of_file(images, output, ending, channels)]
    if not images.is_dir():
        raise FileNotFoundError(f"there is no {images}")
    found = images_by_case(images, ending)
    if not found:
        raise FileNotFoundError(f"{images} has no images named CASE_0000{ending}")
    files = in_order(found, channels, images, ending)
    return [PredictionCase(name, tuple(paths), output / name) for name, paths in files.items()]


def _case_of_file(image: Path, output: Path, ending: str, channels: int) -> PredictionCase:
    if not image.name.endswith(ending):
        raise ValueError(f"{image} does not end with {ending}, as the model's images do")
    name, number = channel_of(image.name, ending)
    files = {0: image}
    if number is not None:
        siblings = ((i, image.with_name(f"{name}_{i:04d}{ending}")) for i in range(channels))
        files = {i: path for i, path in siblings if path.is_file()}
    target = output / name
    if output.name.endswith(ending) and not output.is_dir():
        target = output.with_name(output.name[: -len(ending)])
    return PredictionCase(name, tuple(in_order({name: files}, channels, image.parent, ending)[name]), target)


def prepare_case(case: PredictionCase, pipeline: Pipeline) -> tuple[np.ndarray, Grid]:
    """Read and preprocess a case as nnU-Net does.

    Returns:
        The image, float32 ``(channels, z, y, x)`` on the grid of the model, and how this grid lies in the file.

    Raises:
        ValueError: If images cannot be read or do not belong together; the message names the case.
    """
    try:
        channels, header = _read_channels(case.images, pipeline)
    except ValueError as error:
        raise ValueError(f"case {case.name}: {error}") from error
    try:
        if len(header.geometry.get("sitk_stuff", {}).get("spacing", ())) > 3:  # nnU-Net can read it
            raise ValueError(
                "nnU-Net writes no segmentation of a 4-D image: save each channel as a 3-D image of its own, "
                f"{case.name}_0000{pipeline.file_ending} and so on"
            )
        return preprocess(channels, header.spacing, pipeline, header.geometry)
    except (ValueError, ArithmeticError, MemoryError) as error:
        files = ", ".join(map(str, case.images))
        raise ValueError(f"case {case.name}: cannot preprocess {files}: {reason(error)}") from error


def _read_channels(images: Sequence[Path], pipeline: Pipeline) -> tuple[list[np.ndarray], Header]:
    """Read all channels, each ``(z, y, x)`` in the type of its file, and the header of the first file."""
    channels: list[np.ndarray] = []
    headers: list[Header] = []
    for path in images:
        try:
            check_whole(path)
            found, header = FORMATS[pipeline.reader].read(path)
        except ImportError:
            raise
        except Exception as error:  # each image library has exceptions of its own
            raise ValueError(f"cannot read {path}: {reason(error, path)}") from error
        if headers and found.shape[1:] != channels[0].shape:
            sizes = (_times(found.shape[1:]), _times(channels[0].shape))
            raise ValueError(f"{path} has {sizes[0]} voxels, but {images[0]} has {sizes[1]}")
        if headers and not np.allclose(header.spacing, headers[0].spacing):  # nnU-Net compares spacings this way
            sizes = (_times(header.spacing), _times(headers[0].spacing))
            raise ValueError(f"{path} has voxels of {sizes[0]} mm, but {images[0]} of {sizes[1]} mm")
        headers.append(header)
        channels.extend(found)
    if len(channels) != len(pipeline.channels):
        raise ValueError(_wrong_count(images, len(channels), pipeline.channels))
    return channels, headers[0]


def _wrong_count(images: Sequence[Path], found: int, wanted: Sequence[str]) -> str:
    which = f"{images[0]} has" if len(images) == 1 else f"{', '.join(map(str, images))} have"
    alpha = ". Save it without transparency (alpha)" if (len(wanted), found) in ((1, 2), (3, 4)) else ""
    count = f"{found} channel{'' if found == 1 else 's'}"
    return f"{which} {count}, but the model takes {len(wanted)} ({', '.join(wanted)}){alpha}"


def _times(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
