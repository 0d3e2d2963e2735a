"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def busiest_slice(labels: NDArray[np.integer]) -> int:
    """Index along the first axis of the slice with most foreground, small classes counting as much as large ones."""
    shares = [
        (labels == value).sum((1, 2)) / max((labels == value).sum(), 1) for value in np.unique(labels) if value != 0
    ]
    return int(np.argmax(np.sum(shares, 0))) if shares else labels.shape[0] // 2


def draw_comparison(
    rows: Mapping[str, tuple[NDArray[np.floating], Mapping[str, NDArray[np.integer]]]],
    label_names: Mapping[int, str],
    aspect: float,
) -> Figure:
    """One row a case: the image, then the reference and every method's segmentation drawn over it.

    Args:
        rows: Case -> (image ``(y, x)``, title -> labels ``(y, x)``); the first title is the reference.
        label_names: Value -> name of the classes to draw.
        aspect: Voxel size along y over that along x.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = colormaps["Set1"].colors  # type: ignore[attr-defined]
    titles = ["image", *next(iter(rows.values()))[1]]
    figure = Figure(figsize=(2.4 * len(titles), 2.6 * len(rows)))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
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
        row[0].set_ylabel(case, fontsize=8)
    handles = [Line2D([], [], color=colours[value - 1], label=name) for value, name in label_names.items()]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    return figure
