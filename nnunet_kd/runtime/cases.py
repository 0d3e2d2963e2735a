"""The cases of a prediction: find them under nnU-Net's names, and read their images, or say what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .dicom.segmentation import ENDING as DICOM_ENDING
from .dicom.segmentation import DicomSegmentation
from .dicom.series import Series, find_series, holds_dicom, read_volume
from .dicom.structures import read_structures
from .files.error_reasons import reason
from .files.image_names import channel_of, images_by_case, in_order
from .files.integrity import check_whole
from .plans import Pipeline
from .preprocessing import Grid, preprocess
from .readers import FORMATS, Header, channels_of

# How nnU-Net's readers of medical images orient an image: not at all, or with axes towards right, anterior, superior.
_ORIENTATIONS = {
    "SimpleITKIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIO": None,
    "NibabelIOWithReorient": "RAS",
}


@dataclass(frozen=True)
class PredictionCase:
    """One case to predict.

    Attributes:
        name: The name of the case.
        images: The image file of every channel.
        target: The path of the segmentation without its file ending.
        series: The DICOM series that the images are the slices of; ``None`` for other images.
        dicom: The DICOM segmentation to write; ``None`` for the format of the model.
    """

    name: str
    images: tuple[Path, ...]
    target: Path
    series: Series | None = None
    dicom: DicomSegmentation | None = None

    def ending(self, pipeline: Pipeline) -> str:
        """Return the file ending of the segmentation."""
        return DICOM_ENDING if self.dicom is not None else pipeline.file_ending


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
    if not images.exists():
        raise FileNotFoundError(f"there is no {images}")
    if output.name.endswith(DICOM_ENDING) and ending != DICOM_ENDING and not output.is_dir():
        raise ValueError(f"cannot write {output}: only the segmentation of a DICOM series can be DICOM")
    if images.is_file():
        return [_case_of_file(images, output, ending, channels)]
    found = images_by_case(images, ending)
    if not found:
        raise FileNotFoundError(f"{images} has no images named CASE_0000{ending}")
    files = in_order(found, channels, images, ending)
    return [PredictionCase(name, tuple(paths), output / name) for name, paths in files.items()]


def is_series(images: Path, ending: str) -> bool:
    """Return whether a path is a folder of DICOM files rather than of images ``CASE_0000ENDING``."""
    return images.is_dir() and not images_by_case(images, ending) and holds_dicom(images)


def find_series_case(
    folder: Path,
    output: Path,
    pipeline: Pipeline,
    algorithm: str,
    chosen: str | None = None,
    structures: Path | None = None,
) -> PredictionCase:
    """Return the case of a DICOM series.

    Args:
        folder: The folder of the series.
        output: The file of the segmentation, which ends with ``.dcm`` for DICOM or as the model's images do, or a
            folder for a file in the format of the model that is called like the folder of the series.
        pipeline: The settings of the model.
        algorithm: The name of the model, for the record in a DICOM segmentation.
        chosen: The SeriesInstanceUID or SeriesNumber of the series, if the folder holds several.
        structures: A JSON file about the structures in a DICOM segmentation, see
            :func:`nnunet_kd.runtime.dicom.structures.read_structures`.

    Raises:
        ValueError: If the model does not take one series, or the slices do not form one volume; the message names the
            file.
        ImportError: If pydicom is not installed, or highdicom to write DICOM.
    """
    if pipeline.reader not in _ORIENTATIONS:
        raise ValueError(f"the model takes {pipeline.file_ending} files that nnU-Net reads as pictures, not DICOM")
    if len(pipeline.channels) != 1:
        names = ", ".join(pipeline.channels)
        raise ValueError(
            f"{folder} is a DICOM series, which is one channel, but the model takes {len(pipeline.channels)} "
            f"({names}): convert each to CASE_0000{pipeline.file_ending} and so on, on the same grid"
        )
    as_dicom = output.name.endswith(DICOM_ENDING) and not output.is_dir()
    if structures is not None and not as_dicom:
        raise ValueError(f"{structures} describes the structures of a DICOM segmentation: give a .dcm file with -o")
    described = read_structures(pipeline.labels, structures) if as_dicom else ()
    series = find_series(folder, chosen)
    name = folder.resolve().name
    if as_dicom:
        target, dicom = output.with_suffix(""), DicomSegmentation(series, described, algorithm)
        return PredictionCase(name, series.files, target, series, dicom)
    return PredictionCase(name, series.files, _target(name, output, pipeline.file_ending), series)


def _case_of_file(image: Path, output: Path, ending: str, channels: int) -> PredictionCase:
    if not image.name.endswith(ending):
        raise ValueError(f"{image} does not end with {ending}, as the model's images do")
    name, number = channel_of(image.name, ending)
    files = {0: image}
    if number is not None:
        siblings = ((i, image.with_name(f"{name}_{i:04d}{ending}")) for i in range(channels))
        files = {i: path for i, path in siblings if path.is_file()}
    paths = in_order({name: files}, channels, image.parent, ending)[name]
    return PredictionCase(name, tuple(paths), _target(name, output, ending))


def _target(name: str, output: Path, ending: str) -> Path:
    """Return the path of a segmentation without its ending: ``output`` itself, or a file of this name in it."""
    if output.name.endswith(ending) and not output.is_dir():
        return output.with_name(output.name[: -len(ending)])
    return output / name


def prepare_case(case: PredictionCase, pipeline: Pipeline) -> tuple[np.ndarray, Grid]:
    """Read and preprocess a case as nnU-Net does.

    Returns:
        The image, float32 ``(channels, z, y, x)`` on the grid of the model, and how this grid lies in the file.

    Raises:
        ValueError: If images cannot be read or do not belong together; the message names the case.
    """
    try:
        if case.series is not None:
            channels, header = _read_series(case.series, pipeline)
        else:
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
        files = ", ".join(map(str, case.images)) if case.series is None else str(case.series.folder)
        raise ValueError(f"case {case.name}: cannot preprocess {files}: {reason(error)}") from error


def _read_series(series: Series, pipeline: Pipeline) -> tuple[list[np.ndarray], Header]:
    channels, header = channels_of(read_volume(series), _ORIENTATIONS[pipeline.reader])
    return list(channels), header


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
