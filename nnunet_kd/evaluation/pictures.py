"""Pictures of segmentations: planes through a case, with the outlines of the structures and the errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from nnunet_kd.evaluation.chart_style import BLUE, VERMILLION, YELLOW, colours_of_structures
from nnunet_kd.evaluation.page import Gallery, Picture

TILE = 240  # pixels of the side of a square plane
GAP = 4
LINE = 2  # pixels of an outline
CONTEXT = 1.7  # the side of the part that is shown, in sides of the structures in it
SMALLEST = 24  # voxels of that part's side, at least
KINDS = {"false positive": VERMILLION, "false negative": BLUE, "another structure": YELLOW}
NOTE = (
    "Each row of squares is a plane, {planes}: the one in which most voxels differ from the reference. The first "
    "picture has the whole plane, whose white frame is the part that the other squares show. The squares on the right "
    "of the other pictures show the errors."
)

Pixels = NDArray[np.uint8]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Case:
    """A case with its segmentations; arrays are ``(z, y, x)`` and have one slice if the image is 2-D.

    Attributes:
        image: The image.
        reference: The labels of the reference.
        segmentations: The labels by method.
        spacing: The voxel size in mm ``(z, y, x)``.
        notes: What follows the name of a method, such as its Dice.
    """

    image: NDArray[np.floating]
    reference: Labels
    segmentations: Mapping[str, Labels]
    spacing: Sequence[float]
    notes: Mapping[str, str]


def worst_slice(reference: Labels, segmentations: Mapping[str, Labels], axis: int) -> int:
    """Return the index along ``axis`` of the slice in which most voxels differ from the reference."""
    others = tuple(other for other in range(reference.ndim) if other != axis)
    wrong = np.sum([(labels != reference).sum(others) for labels in segmentations.values()], axis=0)
    return int(np.argmax(wrong)) if wrong.any() else int(np.argmax((reference != 0).sum(others)))


def draw_cases(
    title: str, note: str, cases: Mapping[str, Case], structures: Mapping[str, tuple[int, ...]], reference: str
) -> Gallery:
    """Draw three planes of every case, or one if it is 2-D, with the outlines of the structures and the errors.

    Args:
        title: The heading.
        note: What precedes the explanation of the pictures.
        cases: The cases by caption.
        structures: The label values by name, in the order in which they are drawn.
        reference: The name of the reference.
    """
    colours = colours_of_structures(structures)
    outlines = [(values, _rgb(colours[name])) for name, values in structures.items()]
    flat = all(case.image.shape[0] == 1 for case in cases.values())
    note = f"{note} {NOTE.format(planes='of which there is one' if flat else 'across z, y and x')}".strip()
    pictures = {caption: list(_pictures(case, outlines, reference)) for caption, case in cases.items()}
    return Gallery(title, note, pictures, {**colours, **KINDS})


def _pictures(case: Case, outlines: Any, reference: str) -> Iterator[Picture]:
    planes = [_Plane(case, axis) for axis in ((0,) if case.image.shape[0] == 1 else (0, 1, 2))]
    rows = [(plane.whole(), plane.segmented(plane.reference, outlines)) for plane in planes]
    yield Picture(f"Image and {reference}", "", _arranged(rows))
    for method in case.segmentations:
        found = [plane.segmentations[method] for plane in planes]
        rows = [
            (plane.segmented(labels, outlines), plane.errors(labels))
            for plane, labels in zip(planes, found, strict=True)
        ]
        yield Picture(method, case.notes.get(method, ""), _arranged(rows))


class _Plane:
    """A plane of a case in squares of :data:`TILE` pixels that have the same scale in both directions.

    Args:
        case: The case.
        axis: The axis that the plane is perpendicular to.
    """

    def __init__(self, case: Case, axis: int) -> None:
        where = worst_slice(case.reference, case.segmentations, axis)

        def cut(volume: NDArray[Any]) -> NDArray[Any]:
            plane: NDArray[Any] = volume.take(where, axis)
            return plane if axis == 0 else plane[::-1]  # z grows upwards

        image = cut(case.image).astype(np.float64)
        low, high = np.percentile(image, (1, 99.5))
        self.grey = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
        self.reference = cut(case.reference)
        self.segmentations = {method: cut(labels) for method, labels in case.segmentations.items()}
        self.spacing = [length for number, length in enumerate(case.spacing) if number != axis]
        self.window = self._window()

    def _window(self) -> tuple[float, float, float]:
        """Return the centre (y, x) and the side of the square around the structures, in mm."""
        found = np.any([labels != 0 for labels in (self.reference, *self.segmentations.values())], axis=0)
        lengths = [size * length for size, length in zip(found.shape, self.spacing, strict=True)]
        if not found.any():
            return lengths[0] / 2, lengths[1] / 2, max(lengths)
        ends = [(np.flatnonzero(found.any(1 - axis))[[0, -1]] + (0, 1)) * self.spacing[axis] for axis in (0, 1)]
        side = max(CONTEXT * max(np.ptp(ends[0]), np.ptp(ends[1])), SMALLEST * min(self.spacing))
        centre = [float(np.mean(end)) for end in ends]
        return centre[0], centre[1], float(min(side, max(lengths)))

    def _places(self, centre: tuple[float, float], side: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the indices of the voxels below the pixels of a square; -1 beyond the image."""
        steps = (np.arange(TILE) + 0.5) / TILE - 0.5
        found = []
        for middle, length, size in zip(centre, self.spacing, self.grey.shape, strict=True):
            index = np.floor((middle + side * steps) / length).astype(np.intp)
            found.append(np.where((index >= 0) & (index < size), index, -1))
        return found[0][:, None], found[1][None, :]

    def _shown(self, plane: NDArray[Any], places: tuple[NDArray[np.intp], NDArray[np.intp]]) -> NDArray[Any]:
        """Return the values below the pixels of a square, 0 beyond the image."""
        return np.where((places[0] >= 0) & (places[1] >= 0), plane[places], 0)

    @property
    def _part(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return self._places(self.window[:2], self.window[2])

    def whole(self) -> Pixels:
        """Return the whole plane with a frame around the part that the other squares show."""
        lengths = [size * length for size, length in zip(self.grey.shape, self.spacing, strict=True)]
        side = max(lengths)
        pixels = _greyscale(self._shown(self.grey, self._places((lengths[0] / 2, lengths[1] / 2), side)))
        y, x, part = self.window
        if part < side:
            corner = [
                TILE * (0.5 + (middle - part / 2 - length / 2) / side)
                for middle, length in ((y, lengths[0]), (x, lengths[1]))
            ]
            frame = np.zeros((TILE, TILE), bool)
            ends = [(max(int(start), 0), math.ceil(start + TILE * part / side)) for start in corner]
            frame[ends[0][0] : ends[0][1], ends[1][0] : ends[1][1]] = True
            pixels[_edge(frame)] = 255
        return pixels

    def segmented(self, labels: Labels, outlines: Sequence[tuple[tuple[int, ...], NDArray[np.float64]]]) -> Pixels:
        """Return the part with the structures outlined."""
        places = self._part
        pixels = _greyscale(self._shown(self.grey, places)).astype(np.float64)
        shown = self._shown(labels, places)
        masks = [(np.isin(shown, values), colour) for values, colour in outlines]
        for mask, colour in masks:
            pixels[mask] = 0.75 * pixels[mask] + 0.25 * colour
        for mask, colour in masks:
            pixels[_edge(mask)] = colour
        return pixels.astype(np.uint8)

    def errors(self, labels: Labels) -> Pixels:
        """Return the part with the voxels that differ from the reference in the colours of :data:`KINDS`."""
        places = self._part
        pixels = (0.6 * _greyscale(self._shown(self.grey, places))).astype(np.uint8)
        wrong = np.select([self.reference == labels, self.reference == 0, labels == 0], [0, 1, 2], 3)
        shown = self._shown(wrong, places)
        for kind, colour in enumerate(KINDS.values(), 1):
            pixels[shown == kind] = _rgb(colour)
        return pixels


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)], np.float64)


def _greyscale(grey: NDArray[np.floating]) -> Pixels:
    return np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=-1)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that are at most :data:`LINE` pixels from its border."""
    inner: NDArray[np.bool_] = binary_erosion(mask, iterations=LINE, border_value=1)
    return mask & ~inner


def _arranged(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """Return the squares in rows and columns, with nothing between them."""
    height, width = len(rows), len(rows[0])
    whole = np.zeros((height * (TILE + GAP) - GAP, width * (TILE + GAP) - GAP, 4), np.uint8)
    for row, squares in enumerate(rows):
        for column, pixels in enumerate(squares):
            y, x = row * (TILE + GAP), column * (TILE + GAP)
            whole[y : y + TILE, x : x + TILE, :3] = pixels
            whole[y : y + TILE, x : x + TILE, 3] = 255
    return whole
