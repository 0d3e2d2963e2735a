"""Find a DICOM series in a folder, and read it as one volume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..files.error_reasons import reason
from ..files.image_names import is_left_over
from ..files.integrity import check_name
from .geometry import Geometry, volume_geometry
from .packages import package

_ENDINGS = (".dcm", ".dicom", ".ima")
_FOR_CHOOSING = (
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "NumberOfFrames",
    "ImagePositionPatient",
    "Rows",
)
# DICOM requires these attributes but allows them to be empty; programs that remove names often leave them out.
_CAN_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


@dataclass(frozen=True)
class Series:
    """A DICOM series whose slices form one volume.

    Attributes:
        folder: The folder in which it was found.
        files: The file of every slice, in the direction of the slices' normal.
        headers: The data sets of these files (``pydicom.Dataset``) without their pixels.
        geometry: How the volume lies in the patient.
    """

    folder: Path
    files: tuple[Path, ...]
    headers: tuple[Any, ...]
    geometry: Geometry


def holds_dicom(folder: Path) -> bool:
    """Return whether there is a DICOM file anywhere in a folder."""
    return any(_is_dicom(path) for path in _files(folder))


def find_series(folder: Path, chosen: str | None = None) -> Series:
    """Find the DICOM series in a folder and its subfolders, and check that its slices form one volume.

    Files without a position in the patient, such as reports and segmentations, are ignored.

    Args:
        folder: The folder.
        chosen: The SeriesInstanceUID or SeriesNumber of the series; it can be left out if there is only one.

    Raises:
        ValueError: If there is no series or more than one, or if its slices are truncated, mixed, sheared or unevenly
            spaced; the message names the file.
        ImportError: If pydicom is not installed.
    """
    found: dict[str, list[tuple[Path, Any]]] = {}
    several_frames: list[Path] = []
    for path in _files(folder):
        if not _is_dicom(path):
            _check_stranger(path)
            continue
        header = _read_header(path, specific_tags=list(_FOR_CHOOSING), stop_before_pixels=True)
        if "Rows" not in header and _is_image(header):
            raise ValueError(f"cannot read {path}: it is truncated")
        if "ImagePositionPatient" in header:
            if "SeriesInstanceUID" not in header:
                raise ValueError(f"{path} has no SeriesInstanceUID, so nobody can tell to which series it belongs")
            found.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
        elif int(header.get("NumberOfFrames") or 1) > 1 and header.get("Modality") != "SEG":
            several_frames.append(path)
    if not found and several_frames:
        raise ValueError(
            f"{several_frames[0]} holds several slices in one file (enhanced DICOM): convert it to NIfTI, or to one "
            "file per slice"
        )
    if not found:
        raise ValueError(f"no DICOM file in {folder} has a position in the patient (ImagePositionPatient)")
    files = [path for path, _ in found[_choose(folder, found, chosen)]]
    headers = [_read_whole(path) for path in files]
    known = max(int(header.get("NumberOfSeriesRelatedInstances") or 0) for header in headers)
    if known > len(files):
        raise ValueError(f"{folder} holds {len(files)} of the {known} slices of its series: copy all of them")
    order, geometry = volume_geometry(files, headers)
    return Series(folder, tuple(files[i] for i in order), tuple(headers[i] for i in order), geometry)


def read_volume(series: Series) -> sitk.Image:
    """Read the slices of a series as one image, in the units of the modality, such as Hounsfield units.

    Raises:
        ValueError: If the pixels of a slice cannot be read; the message names its file.
    """
    planes = []
    for path in series.files:
        try:
            image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        except RuntimeError as error:
            raise ValueError(f"cannot read {path}: {reason(error)}") from error
        planes.append(sitk.GetArrayFromImage(image).reshape(series.geometry.size[1::-1]))
    image = sitk.GetImageFromArray(np.stack(planes))  # slices can have types of their own, as in PET
    image.SetOrigin(series.geometry.origin)
    image.SetSpacing(series.geometry.spacing)
    image.SetDirection(series.geometry.direction)
    return image


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder but hidden ones and those that operating systems leave."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(name.startswith(".") or is_left_over(name) for name in inner):
            yield path


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_stranger(path: Path) -> None:
    """Refuse a file that should be a DICOM file, judged by its name, but that lacks even its beginning."""
    if path.name.lower().endswith(_ENDINGS) or path.stat().st_size == 0:
        raise ValueError(f"cannot read {path}: it is truncated or not a DICOM file")


def _read_header(path: Path, **options: Any) -> Any:
    check_name(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that break DICOM's rules in harmless ways
            return package("pydicom").dcmread(path, **options)
    except ImportError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise ValueError(f"cannot read {path}: it is truncated or damaged ({reason(error)})") from error


def _is_image(header: Any) -> bool:
    """Return whether a file should hold an image; without any class it must be damaged, and could have been one."""
    uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    return uid is None or str(uid.name).endswith("Image Storage")


def _read_whole(path: Path) -> Any:
    """Return the header of a slice whose pixels are complete."""
    header = _read_header(path)
    stored = header.get("PixelData")
    needed = 0 if stored is None or header.file_meta.TransferSyntaxUID.is_compressed else _bytes_of_pixels(header, path)
    if not stored or len(stored) < needed:
        raise ValueError(f"cannot read {path}: it is truncated")
    del header.PixelData
    for name in _CAN_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    return header


def _bytes_of_pixels(header: Any, path: Path) -> int:
    try:
        return (
            int(header.Rows)
            * int(header.Columns)
            * int(header.get("SamplesPerPixel", 1))
            * (int(header.BitsAllocated) // 8)
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path}: it does not say how many pixels it has ({reason(error)})") from error


def _choose(folder: Path, found: dict[str, list[tuple[Path, Any]]], chosen: str | None) -> str:
    """Return the UID of the series to read."""
    numbers = {uid: str(slices[0][1].get("SeriesNumber") or "") for uid, slices in found.items()}
    if chosen is None:
        if len(found) == 1:
            return next(iter(found))
        raise ValueError(f"{folder} holds {len(found)} series: choose one with --series, {_listed(found, numbers)}")
    matching = [uid for uid in found if chosen in (uid, numbers[uid])]
    if len(matching) != 1:
        count = "no series" if not matching else "more than one series"
        raise ValueError(f"{folder} holds {count} {chosen!r}, only {_listed(found, numbers)}")
    return matching[0]


def _listed(found: dict[str, list[tuple[Path, Any]]], numbers: dict[str, str]) -> str:
    """Describe every series, each by its number if it has one of its own."""
    values: Sequence[str] = list(numbers.values())
    described = []
    for uid, slices in found.items():
        name = numbers[uid] if numbers[uid] and values.count(numbers[uid]) == 1 else uid
        header = slices[0][1]
        what = [str(header.get("Modality") or ""), str(header.get("SeriesDescription") or "")]
        count = f"{len(slices)} slice{'' if len(slices) == 1 else 's'}"
        described.append(f"{name} ({', '.join([*filter(None, what), count])})")
    return "; ".join(described)
