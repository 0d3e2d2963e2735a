"""nnU-Net's readers of images and writers of segmentations.

Each returns the channels of one file and its header: the voxel size and what is needed to write a segmentation with the
same geometry. Arrays have the axis order of nnU-Net, ``(channels, z, y, x)``; a slice has one plane.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .files.limited_json import read_limited
from .files.writing import write_whole


@dataclass(frozen=True)
class Header:
    """The geometry of an image file.

    Attributes:
        spacing: The voxel size in mm along ``z, y, x``.
        geometry: What the writer needs besides, under the name that nnU-Net gives it.
    """

    spacing: tuple[float, float, float]
    geometry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A way to read images and to write segmentations.

    Attributes:
        read: Returns the channels ``(channels, z, y, x)`` of a file, in the type of the file, and its header.
        write: Writes labels ``(z, y, x)`` with the geometry of a header.
        has_voxel_size_file: Whether the voxel size is stored in a JSON file beside the image.
    """

    read: Callable[[Path], tuple[np.ndarray, Header]]
    write: Callable[[np.ndarray, Path, Header], None]
    has_voxel_size_file: bool = False


def channels_of(image: sitk.Image, orientation: str | None = None) -> tuple[np.ndarray, Header]:
    """Return the channels of an image ``(channels, z, y, x)`` and its header.

    Args:
        image: The image.
        orientation: The letters of the directions along ``x, y, z`` to which its axes are flipped and exchanged, such
            as ``"RAS"``; by default, they stay as they are.

    Raises:
        ValueError: If a voxel has several values, or the image is neither 2-D, 3-D nor 4-D.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"its voxels have {image.GetNumberOfComponentsPerPixel()} values each, but must have one")
    stuff: dict[str, Any] = {}
    if orientation is not None:
        stuff["original_orientation"] = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(
            image.GetDirection()
        )
        image = sitk.DICOMOrient(image, orientation)
    sizes = image.GetSpacing()
    stuff = {"spacing": sizes, "origin": image.GetOrigin(), "direction": image.GetDirection(), **stuff}
    array = sitk.GetArrayFromImage(image)
    backwards = [abs(size) for size in sizes[::-1]]
    if array.ndim == 2:
        array, backwards = array[None, None], [abs(max(sizes) * 999), *backwards]
    elif array.ndim == 3:
        array = array[None]
    elif array.ndim == 4:
        backwards = backwards[1:]
    else:
        raise ValueError(f"it has {array.ndim} dimensions")
    return array, Header(_three(backwards), {"sitk_stuff": stuff})


def labels_on_grid(labels: np.ndarray, header: Header) -> sitk.Image:
    """Return labels ``(z, y, x)`` as an image with the geometry and axes of the image that :func:`channels_of` took."""
    stuff = header.geometry["sitk_stuff"]
    reoriented = stuff.get("original_orientation")
    smallest = np.uint8 if reoriented is not None else _smallest(labels)
    image = sitk.GetImageFromArray((labels[0] if len(stuff["spacing"]) == 2 else labels).astype(smallest, copy=False))
    image.SetSpacing(stuff["spacing"])
    image.SetOrigin(stuff["origin"])
    image.SetDirection(stuff["direction"])
    return image if reoriented is None else sitk.DICOMOrient(image, reoriented)


def _read_itk(path: Path, orientation: str | None = None) -> tuple[np.ndarray, Header]:
    return channels_of(sitk.ReadImage(str(path)), orientation)


def _write_itk(labels: np.ndarray, path: Path, header: Header) -> None:
    sitk.WriteImage(labels_on_grid(labels, header), str(path), True)


def _read_picture(path: Path) -> tuple[np.ndarray, Header]:
    if path.suffix.lower() in (".tif", ".tiff"):
        array = _package("tifffile").imread(path)
        if array.ndim > 2 and array.shape[-1] not in (3, 4) and array.shape[-3] in (3, 4):
            array = np.moveaxis(array, -3, -1)
    else:
        array = _read_pillow(path)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (2, 3, 4)):
        raise ValueError(f"it is neither grey nor a colour picture: its array is {' x '.join(map(str, array.shape))}")
    array = array[None, None] if array.ndim == 2 else np.moveaxis(array, -1, 0)[:, None]
    return array, Header((999.0, 1.0, 1.0))


def _read_pillow(path: Path) -> np.ndarray:
    with _package("PIL.Image", "Pillow").open(path) as picture:
        if picture.mode == "P":
            palette = picture.palette
            return np.asarray(picture.convert("RGB" if palette is None else palette.mode))
        if picture.format == "PNG" and picture.mode == "I":
            return np.asarray(picture).astype(np.uint16)
        return np.asarray(picture)


def _write_picture(labels: np.ndarray, path: Path, header: Header) -> None:
    picture = labels[0].astype(_smallest(labels), copy=False)
    if path.suffix.lower() in (".tif", ".tiff"):
        _package("tifffile").imwrite(path, picture)
    else:
        _package("PIL.Image", "Pillow").fromarray(np.ascontiguousarray(picture)).save(path)


def _read_tiff(path: Path) -> tuple[np.ndarray, Header]:
    array = _package("tifffile").imread(path)
    if array.ndim != 3:
        raise ValueError(f"it has {array.ndim} dimensions, but must be a 3-D image")
    beside = path.with_name(f"{path.name[: -len(path.suffix) - 5]}.json")  # without the number of the channel
    if not beside.is_file():
        return array[None], Header((1.0, 1.0, 1.0))
    content = read_limited(beside)
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(isinstance(size, int | float) for size in spacing):
        raise ValueError(f'{beside} must hold the voxel size as three numbers, such as {{"spacing": [3, 1, 1]}}')
    return array[None], Header(_three(spacing))


def _write_tiff(labels: np.ndarray, path: Path, header: Header) -> None:
    _package("tifffile").imwrite(path, data=labels.astype(_smallest(labels), copy=False), compression="zlib")
    write_whole(path.with_suffix(".json"), json.dumps({"spacing": list(header.spacing)}))


def _read_nibabel(path: Path, reorient: bool = False) -> tuple[np.ndarray, Header]:
    nibabel = _package("nibabel")
    image = nibabel.load(path)
    if image.ndim != 3:
        raise ValueError(f"it has {image.ndim} dimensions, but must be a 3-D image")
    stuff = {"original_affine": image.affine}
    if reorient:
        image = image.as_reoriented(nibabel.io_orientation(image.affine))
        stuff["reoriented_affine"] = image.affine
    spacing = _three([float(size) for size in image.header.get_zooms()[::-1]])
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    return array[None], Header(spacing, {"nibabel_stuff": stuff})


def _write_nibabel(labels: np.ndarray, path: Path, header: Header) -> None:
    nibabel = _package("nibabel")
    stuff = header.geometry["nibabel_stuff"]
    reoriented = stuff.get("reoriented_affine")
    array = labels.transpose(2, 1, 0).astype(_smallest(labels), copy=False)
    image = nibabel.Nifti1Image(array, affine=stuff["original_affine"] if reoriented is None else reoriented)
    if reoriented is not None:
        axes = nibabel.orientations
        back = axes.ornt_transform(axes.io_orientation(reoriented), axes.io_orientation(stuff["original_affine"]))
        image = image.as_reoriented(back)
    nibabel.save(image, path)


def _package(name: str, to_install: str | None = None) -> Any:
    """Import the package of a format when a file of this format is read or written."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = to_install or name
        raise ImportError(f"{package} is not installed, which this format needs: pip install {package}") from error


def _smallest(labels: np.ndarray) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if labels.max() < 255 else np.uint16


def _three(sizes: Any) -> tuple[float, float, float]:
    z, y, x = map(float, sizes)
    return z, y, x


FORMATS: Mapping[str, Format] = {
    "SimpleITKIO": Format(_read_itk, _write_itk),
    "SimpleITKIOWithReorient": Format(lambda path: _read_itk(path, "RAS"), _write_itk),
    "NaturalImage2DIO": Format(_read_picture, _write_picture),
    "Tiff3DIO": Format(_read_tiff, _write_tiff, has_voxel_size_file=True),
    "NibabelIO": Format(_read_nibabel, _write_nibabel),
    "NibabelIOWithReorient": Format(lambda path: _read_nibabel(path, True), _write_nibabel),
}
