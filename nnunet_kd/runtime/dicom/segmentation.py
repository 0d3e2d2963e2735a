"""Labels as a DICOM segmentation (DICOM-SEG) that belongs to the series in which they were found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import DISTRIBUTION
from ..files.error_reasons import reason
from .packages import package
from .series import Series
from .structures import Code, Structure

ENDING = ".dcm"
_LONGEST = 64  # letters of a name in DICOM


class DicomSegmentation:
    """The DICOM segmentation of a series: binary, with one segment per structure.

    Args:
        series: The series, whose patient and study the segmentation gets.
        structures: The structures, one per segment.
        algorithm: The name of the model, for the record.

    Raises:
        ValueError: If the series lacks something to which a segmentation must refer; the message names the file.
        ImportError: If highdicom is not installed.
    """

    def __init__(self, series: Series, structures: Sequence[Structure], algorithm: str) -> None:
        package("highdicom")
        for name in ("FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            for path, header in zip(series.files, series.headers, strict=True):
                if not header.get(name):
                    raise ValueError(
                        f"{path} has no {name}, to which a DICOM segmentation must refer: write another format with -o"
                    )
        self._series = series
        self._structures = structures
        self._algorithm = algorithm

    def write(self, labels: np.ndarray, path: Path) -> None:
        """Write the labels ``(z, y, x)`` on the grid of the series; frames without a voxel of a structure are left out.

        Raises:
            ValueError: If DICOM forbids something in the series, such as values that are not of its kinds.
        """
        from importlib import metadata

        highdicom, version = package("highdicom"), metadata.version(DISTRIBUTION)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names and dates of the series that break DICOM's rules
            try:
                segmentation = highdicom.seg.Segmentation(
                    source_images=list(self._series.headers),
                    pixel_array=_segments(labels, self._structures),
                    segmentation_type="BINARY",
                    segment_descriptions=[
                        _description(number, structure, self._algorithm, version)
                        for number, structure in enumerate(self._structures, 1)
                    ],
                    series_instance_uid=highdicom.UID(),
                    series_number=1000 + int(self._series.headers[0].get("SeriesNumber") or 0),
                    sop_instance_uid=highdicom.UID(),
                    instance_number=1,
                    manufacturer=DISTRIBUTION,
                    manufacturer_model_name=DISTRIBUTION,
                    software_versions=version,
                    device_serial_number="0",
                    series_description="Automatic segmentation",
                )
            except (AttributeError, ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"cannot write a DICOM segmentation of {self._series.folder}: {reason(error)}"
                ) from error
            segmentation.save_as(path)


def is_segmentation(path: Path) -> bool:
    """Return whether a file is a complete DICOM segmentation."""
    try:
        found = package("pydicom").dcmread(path)
        return len(found.PixelData) * 8 >= int(found.NumberOfFrames) * int(found.Rows) * int(found.Columns)
    except (AttributeError, OSError, ValueError, TypeError):
        return False


def _segments(labels: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """Return labels that count the structures from 1, or masks ``(z, y, x, structures)`` of structures that overlap."""
    if [one.labels for one in structures] == [(number,) for number in range(1, len(structures) + 1)]:
        return labels
    masks = np.empty((*labels.shape, len(structures)), dtype=bool)
    for number, structure in enumerate(structures):
        masks[..., number] = np.isin(labels, structure.labels)
    return masks


def _description(number: int, structure: Structure, algorithm: str, version: str) -> Any:
    highdicom = package("highdicom")
    family = _coded(Code("123110", "DCM", "Artificial Intelligence"))
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:_LONGEST],
        segmented_property_category=_coded(structure.category),
        segmented_property_type=_coded(structure.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(algorithm[:_LONGEST], family, version),
        display_color=highdicom.color.CIELabColor.from_rgb(*structure.colour),
    )


def _coded(code: Code) -> Any:
    return package("highdicom").sr.CodedConcept(code.value, code.scheme, code.meaning)
