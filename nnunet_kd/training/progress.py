"""Curves of the distillation terms in nnU-Net's ``progress.png``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

FAST = 1  # zlib's compression level: every epoch waits for the picture


def append_terms(png: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw one curve per term below nnU-Net's picture, in the same width and style.

    Args:
        png: nnU-Net's picture, which is replaced. If it does not exist, nothing happens.
        curves: Term -> its unweighted value in every epoch, NaN if its weight was 0. The axis is logarithmic if all
            values are positive, because terms differ by orders of magnitude.
    """
    if not png.is_file():
        return
    with Image.open(png) as opened:
        above = np.asarray(opened.convert("RGB"))
    dpi = 100
    figure = Figure(figsize=(above.shape[1] / dpi, 18), dpi=dpi)
    axes = figure.subplots()
    values = [value for curve in curves.values() for value in curve if value == value]
    for name, curve in curves.items():
        axes.plot(range(len(curve)), curve, label=name, linewidth=4, marker="o", markersize=6)
    if values and min(values) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("epoch", fontsize=30)
    axes.set_ylabel("unweighted terms", fontsize=30)
    axes.tick_params(labelsize=26)
    axes.tick_params(which="minor", labelsize=20)
    axes.grid(True, alpha=0.5)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=3, fontsize=28)
    figure.tight_layout()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    below = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    unfinished = png.with_name(".unfinished")
    Image.fromarray(np.concatenate((above, below))).save(unfinished, format="PNG", compress_level=FAST)
    os.replace(unfinished, png)
