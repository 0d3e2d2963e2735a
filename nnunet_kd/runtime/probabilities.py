"""Probabilities of all classes, streamed to disk: plane by plane while a case is predicted, then class by class."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from .plans import Labels
from .preprocessing import Grid


class ProbabilityFile:
    """The probabilities of a case in the file that nnU-Net writes, ``CASE.npz``.

    Planes come with all classes, but the file holds one class after the other, so they wait in a temporary file.

    Args:
        folder: The folder of the temporary file.
        grid: How the grid of the model lies in the file.
        labels: The labels or regions.
    """

    def __init__(self, folder: Path, grid: Grid, labels: Labels) -> None:
        self._grid = grid
        self._labels = labels
        self._path = folder / "planes"
        self._file = self._path.open("w+b")

    def add(self, plane: np.ndarray) -> None:
        """Take the next plane of the crop, float32 ``(heads, y, x)`` in the order of the model's axes."""
        self._file.write(np.ascontiguousarray(plane, dtype=np.float32).data)

    def write(self, path: Path) -> None:
        """Write the file, float32 ``(heads, z, y, x)`` on the grid of the image, with one class in memory at a time."""
        heads, grid = self._labels.heads, self._grid
        shape = (heads, *(grid.whole[axis] for axis in grid.backwards))
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        depth, *plane = grid.cropped
        size = plane[0] * plane[1]
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive,
            archive.open("probabilities.npy", "w", force_zip64=True) as member,
        ):
            np.lib.format.write_array_header_1_0(member, header)
            for head in range(heads):
                # Outside the crop is background, which regions do not have.
                certain = head == 0 and self._labels.region_order is None
                whole = np.full(grid.whole, float(certain), dtype=np.float32)
                target = whole[grid.crop]
                for number in range(depth):
                    self._file.seek(4 * size * (heads * number + head))
                    target[number] = np.frombuffer(self._file.read(4 * size), np.float32).reshape(plane)
                for part in whole.transpose(grid.backwards):
                    member.write(np.ascontiguousarray(part).data)

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
