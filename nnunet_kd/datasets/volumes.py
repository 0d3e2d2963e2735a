"""Read, check, resample and write 3-D images without losing their place in space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.datasets.source_files import is_dangling
from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.nnunet.labels import label_text, whole_labels
from nnunet_kd.storage.integrity import check_name, check_whole, is_compressed
from nnunet_kd.storage.writing import naming_full_disk, not_written

sitk.ProcessObject.SetGlobalWarningDisplay(False)

PLACE_TOLERANCE = 1e-2  # mm, between the same corners of two grids


def read_volume(path: Path) -> sitk.Image:
    """Return a 3-D image of one channel.

    Raises:
        ValueError: If the file cannot be read or is cut off, or the image has other dimensions or more channels.
    """
    if is_dangling(path):
        raise ValueError(f"cannot read {path}: it is a link to {os.readlink(path)}, which is not there")
    try:
        check_whole(path)
        image = sitk.ReadImage(str(path))
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"cannot read {path}: {reason(error, path)}") from None
    dimensions, channels = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if (dimensions, channels) != (3, 1):
        found = f"{dimensions} dimensions and {channels} channel{'' if channels == 1 else 's'}"
        raise ValueError(f"{path} has {found}, but a 3-D image of one channel is expected")
    return image


def same_grid(one: sitk.Image, other: sitk.Image) -> bool:
    """Return whether the voxels of both images lie at the same places, up to what headers round."""
    if one.GetSize() != other.GetSize():
        return False
    x, y, z = (length - 1 for length in one.GetSize())
    corners = [(0, 0, 0), (x, 0, 0), (0, y, 0), (0, 0, z)]
    return all(
        np.allclose(
            one.TransformIndexToPhysicalPoint(corner),
            other.TransformIndexToPhysicalPoint(corner),
            rtol=0,
            atol=PLACE_TOLERANCE,
        )
        for corner in corners
    )


def resampled(image: sitk.Image, grid: sitk.Image, nearest: bool = False) -> sitk.Image:
    """Return an image on another image's grid, 0 outside its own: linear, or nearest neighbour for labels."""
    interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, grid, sitk.Transform(), interpolator, 0.0, image.GetPixelID())


def label_array(image: sitk.Image, path: Path, mapping: Mapping[int, int]) -> np.ndarray:
    """Return labels ``(z, y, x)`` as uint8; whole numbers may be stored as floats, up to their rounding.

    Args:
        image: The published label.
        path: Its file, for messages.
        mapping: Published value -> ours.

    Raises:
        ValueError: Naming a value that is no key of the mapping.
    """
    given = whole_labels(sitk.GetArrayFromImage(image))
    result = np.zeros(given.shape, dtype=np.uint8)
    for value in np.unique(given):
        if float(value) not in mapping:
            expected = ", ".join(map(str, sorted(mapping)))
            raise ValueError(f"{path} has the label {label_text(value)}, expected are {expected}")
        result[given == value] = mapping[int(value)]
    return result


def write_volume(array: np.ndarray, grid: sitk.Image, path: Path) -> None:
    """Write an array ``(z, y, x)``, compressed, at the place of another image."""
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(grid)
    write_image(image, path)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed, and read it again, because SimpleITK does not notice a full disk.

    Raises:
        DiskFullError: If the disk is full.
        ValueError: If SimpleITK cannot be given the path.
    """
    check_name(path)
    with naming_full_disk(path):
        sitk.WriteImage(image, str(path), useCompression=True)
    try:
        check_whole(path)
        same = np.array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sitk.GetArrayViewFromImage(image), equal_nan=True
        )
    except (ValueError, OSError, RuntimeError):
        same = False
    if not same:
        raise not_written(path)


def place_file(source: Path, path: Path) -> None:
    """Give a file another name: a hard link, or a copy on another disk.

    Raises:
        DiskFullError: If there is no space for the copy.
    """
    try:
        os.link(source.resolve(), path)
    except OSError:
        with naming_full_disk(path):
            shutil.copyfile(source, path)


def write_case(
    images: Sequence[Path], label: Path, mapping: Mapping[int, int], image_paths: Sequence[Path], label_path: Path
) -> None:
    """Write a case whose images and label are on one grid already. Compressed images are linked, not written again.

    Args:
        images: The published images, one per channel.
        label: The published label.
        mapping: Published value of the label -> ours.
        image_paths: The files to write, one per channel.
        label_path: The file to write.

    Raises:
        ValueError: If a file cannot be read or lies on another grid, or the label has an unexpected value.
        DiskFullError: If there is no space for a file.
    """
    grid = read_volume(images[0])
    for path in (*images[1:], label):
        if not same_grid(read_volume(path), grid):
            raise ValueError(f"{path} is not on the grid of {images[0].name}")
    for source, path in zip(images, image_paths, strict=True):
        if source.name.lower().endswith(".nii.gz") and is_compressed(source):
            place_file(source, path)
        else:
            write_image(read_volume(source), path)
    write_volume(label_array(read_volume(label), label, mapping), grid, label_path)
