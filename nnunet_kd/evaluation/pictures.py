"""Draw pictures of segmentations over images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_kd.evaluation.text import in_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def busiest_slice(labels: NDArray[np.integer]) -> int:
    """Return the index along the first axis of the slice with most foreground, where all classes count equally."""
    shares = [
        (labels == value).sum((1, 2)) / max((labels == value).sum(), 1) for value in np.unique(labels) if value != 0
    ]
    return int(np.argmax(np.sum(shares, 0))) if shares else labels.shape[0] // 2


def draw_comparison(
    rows: Mapping[str, tuple[NDArray[np.floating], Mapping[str, NDArray[np.integer]]]],
    label_names: Mapping[int, str],
    aspect: float,
) -> Figure:
    """Draw one row per case: the image, and the contours of the reference and of every method over the image.

    Args:
        rows: The image ``(y, x)`` and the labels ``(y, x)`` by title, for each case. The first title is the reference.
        label_names: The names of the classes to draw, by label value.
        aspect: The ratio of the voxel size along y to that along x.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = colormaps["Set1"].colors  # type: ignore[attr-defined]
    titles = ["image", *next(iter(rows.values()))[1]]
    figure = Figure(figsize=(2.4 * len(titles), 2.6 * len(rows)))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(in_figure(title), fontsize=10)
    for row, (case, (image, segmentations)) in zip(axes, rows.items(), strict=True):
        low, high = np.percentile(image, (1, 99.5))
        for axis, title in zip(row, titles, strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
            for value in label_names:
                drawn = title != "image" and (segmentations[title] == value)
                if np.any(drawn):
                    axis.contour(drawn, levels=[0.5], colors=[colours[value - 1]], linewidths=1.3)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(in_figure(case), fontsize=8)
    handles = [Line2D([], [], color=colours[value - 1], label=in_figure(name)) for value, name in label_names.items()]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    return figure


@dataclass(frozen=True)
class Slice:
    """A slice of a case with its segmentations.

    Attributes:
        image: The image ``(y, x)``.
        reference: The labels of the reference ``(y, x)``.
        segmentations: The labels ``(y, x)`` by method.
        aspect: The ratio of the voxel size along y to that along x.
    """

    image: NDArray[np.floating]
    reference: NDArray[np.integer]
    segmentations: Mapping[str, NDArray[np.integer]]
    aspect: float


def worst_slice(reference: NDArray[np.integer], segmentations: Mapping[str, NDArray[np.integer]], axis: int) -> int:
    """Return the index along ``axis`` of the slice in which most voxels differ from the reference."""
    others = tuple(other for other in range(reference.ndim) if other != axis)
    wrong = np.sum([(labels != reference).sum(others) for labels in segmentations.values()], axis=0)
    return int(np.argmax(wrong)) if wrong.any() else int(np.argmax((reference != 0).sum(others)))


def draw_disagreement(
    cases: Mapping[str, Slice],
    structures: Mapping[str, tuple[int, ...]],
) -> Figure:
    """Draw two rows per case: the contours of the reference and the methods, and below them the errors of each method.

    Args:
        cases: The slices by caption.
        structures: The label values by name, in the order in which they are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.artist import Artist
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = dict(zip(structures, itertools.cycle(colormaps["Set2"].colors), strict=False))  # type: ignore[attr-defined]
    kinds = {"false positive": "#d62728", "false negative": "#1f77b4", "another structure": "#9467bd"}
    methods = list(next(iter(cases.values())).segmentations)
    figure = Figure(figsize=(2.3 * (len(methods) + 2), 4.4 * len(cases)))
    axes = figure.subplots(2 * len(cases), len(methods) + 2, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (caption, case) in enumerate(cases.items()):
        image, reference = case.image, case.reference
        low, high = np.percentile(image, (1, 99.5))
        flat = {"aspect": case.aspect, "interpolation": "nearest"}
        grey = {"cmap": "gray", "vmin": low, "vmax": high, **flat}
        drawn = {caption: np.zeros_like(reference), "reference": reference, **case.segmentations}
        for axis, (title, labels) in zip(axes[2 * number], drawn.items(), strict=True):
            axis.imshow(image, **grey)
            axis.set_title(in_figure(title), fontsize=8, loc="left")
            for name, values in structures.items():
                if np.isin(labels, values).any():
                    axis.contour(np.isin(labels, values), levels=[0.5], colors=[colours[name]], linewidths=1.2)
        for axis, labels in zip(axes[2 * number + 1][2:], case.segmentations.values(), strict=True):
            wrong = np.select([reference == labels, reference == 0, labels == 0], [0, 1, 2], 3)
            axis.imshow(image, **grey, alpha=0.6)
            shown = np.ma.masked_equal(wrong, 0)
            palette = ListedColormap(list(kinds.values()))
            axis.imshow(shown, cmap=palette, vmin=1, vmax=3, **flat)
    handles: list[Artist] = [Line2D([], [], color=colour, label=in_figure(name)) for name, colour in colours.items()]
    handles += [Patch(color=colour, label=name) for name, colour in kinds.items()]
    figure.legend(handles=handles, loc="lower center", ncol=min(len(handles), 6), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    return figure
