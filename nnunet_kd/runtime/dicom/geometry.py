"""How the slices of a DICOM series lie in the patient, and whether they form a volume on a regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_TOLERANCE = 0.1  # voxels by which a slice may lie off its place on the grid
_ROUNDING = 0.11  # mm by which it always may, because some scanners round positions to 0.1 mm

_SAME_IN_ALL = {  # attribute -> how to say what a slice has, and the largest difference between two slices
    "Rows": ("{} rows", 0),
    "Columns": ("{} columns", 0),
    "PixelSpacing": ("pixels of {} mm", 1e-3),
    "ImageOrientationPatient": ("the orientation {}", 1e-3),
}


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume, in the conventions of SimpleITK.

    Attributes:
        size: The number of voxels along ``x, y, z``.
        spacing: The voxel size along ``x, y, z`` in mm.
        origin: The place of the first voxel in the patient (LPS) in mm.
        direction: The directions of ``x, y, z`` in the columns of a 3 x 3 matrix, row by row.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


def volume_geometry(files: Sequence[Path], headers: Sequence[Any]) -> tuple[list[int], Geometry]:
    """Return the order of the slices of a series along their normal, and the grid of the volume that they form.

    Args:
        files: The file of every slice, for messages.
        headers: The data set of every slice.

    Raises:
        ValueError: If the slices are no volume on a regular grid with axes at right angles; the message names the file
            or the folder.
    """
    for path, header in zip(files, headers, strict=True):
        _check_slice(path, header)
    for path, header in zip(files, headers, strict=True):
        _check_same(path, header, files[0], headers[0])
    rows, columns = np.reshape(_numbers(headers[0].ImageOrientationPatient), (2, 3))
    normal = np.cross(rows, columns)
    places = np.array([_numbers(header.ImagePositionPatient) for header in headers])
    order = [int(index) for index in np.argsort(places @ normal, kind="stable")]
    between_rows, between_columns = _numbers(headers[0].PixelSpacing)
    distance = _distance(
        [files[index] for index in order], places[order], normal, min(between_rows, between_columns), headers[0]
    )
    return order, Geometry(
        size=(int(headers[0].Columns), int(headers[0].Rows), len(files)),
        spacing=(between_columns, between_rows, distance),
        origin=(float(places[order[0]][0]), float(places[order[0]][1]), float(places[order[0]][2])),
        direction=tuple(float(one) for one in np.stack([rows, columns, normal], axis=1).ravel()),
    )


def _check_slice(path: Path, header: Any) -> None:
    """Check that a slice has what a place on a grid needs."""
    wanted = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for name, count in wanted.items():
        values = header.get(name)
        if values is None or len(values) != count or not all(math.isfinite(one) for one in _numbers(values)):
            raise ValueError(f"{path} has no valid {name}, so its place in the patient is unknown")
    if int(header.get("NumberOfFrames") or 1) > 1 or int(header.get("SamplesPerPixel") or 1) > 1:
        raise ValueError(f"{path} must be one slice with one value per pixel")
    axes = np.reshape(_numbers(header.ImageOrientationPatient), (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3) or min(_numbers(header.PixelSpacing)) <= 0:
        raise ValueError(f"{path} has no valid ImageOrientationPatient or PixelSpacing")


def _check_same(path: Path, header: Any, first: Path, other: Any) -> None:
    for name, (words, largest) in _SAME_IN_ALL.items():
        values, wanted = (_numbers(np.atleast_1d(one.get(name))) for one in (header, other))
        if max(abs(value - want) for value, want in zip(values, wanted, strict=True)) > largest:
            raise ValueError(
                f"the series is mixed: {path} has {words.format(_listed(values))}, but {first} has "
                f"{words.format(_listed(wanted))}; keep one kind of slice"
            )


def _distance(files: Sequence[Path], places: np.ndarray, normal: np.ndarray, pixel: float, header: Any) -> float:
    """Return the distance between the slices, whose places are in order along the normal."""
    if len(files) == 1:
        return float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)
    along = places @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    same = int(np.argmin(gaps))
    if gaps[same] <= _TOLERANCE * max(usual, 1e-3):
        raise ValueError(
            f"{files[same]} and {files[same + 1]} show the same place, so the series holds several volumes, such as "
            "times or echoes: keep one of them"
        )
    mean = float(along[-1] - along[0]) / (len(files) - 1)
    if np.abs(along - along[0] - mean * np.arange(len(files))).max() > max(_TOLERANCE * mean, _ROUNDING):
        odd = int(np.argmax(np.abs(gaps - usual)))
        raise ValueError(
            f"slices are unevenly spaced: {files[odd]} and {files[odd + 1]} are {gaps[odd]:.4g} mm apart, but others "
            f"{usual:.4g} mm; add the missing slice, or resample the series"
        )
    aside = places - places[0] - np.outer(along - along[0], normal)
    shift = np.linalg.norm(aside, axis=1)
    if shift.max() > max(_TOLERANCE * pixel, _ROUNDING):
        angle = math.degrees(math.atan2(float(shift[-1]), float(along[-1] - along[0])))
        raise ValueError(
            f"the slices from {files[0]} to {files[-1]} are not stacked at right angles (gantry tilt, {angle:.2g} "
            "degrees): resample the series to a grid with axes at right angles"
        )
    return mean


def _numbers(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _listed(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)
