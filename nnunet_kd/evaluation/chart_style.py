"""The colours of charts and pictures, which the colour-blind can tell apart, and the style of charts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nnunet_kd.evaluation.text import in_figure, plain

# The palette of Okabe and Ito, "Color Universal Design", 2008.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

OF_METHODS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, YELLOW)
OF_STRUCTURES = (SKY, ORANGE, PURPLE, GREEN, YELLOW, BLUE, VERMILLION)
BASELINE = "#8C8C8C"
INK = "#010203"  # pages replace it by the colour of their text
WIDTH = 22  # characters of a line of a label
LINES = 3


def colours_of_methods(methods: Sequence[str], baseline: str, teacher: str | None) -> dict[str, str]:
    """Return the colour of every method; the baseline is grey, and the teacher has the colour of the text."""
    fixed = {baseline: BASELINE} | ({} if teacher is None else {teacher: INK})
    others = [method for method in methods if method not in fixed]
    return {**fixed, **{method: OF_METHODS[number % len(OF_METHODS)] for number, method in enumerate(others)}}


def colours_of_structures(structures: Mapping[str, object]) -> dict[str, str]:
    """Return the colour of every structure."""
    return {name: OF_STRUCTURES[number % len(OF_STRUCTURES)] for number, name in enumerate(structures)}


def label(name: str) -> str:
    """Return a name as a label of a chart, in lines that fit."""
    lines = textwrap.wrap(plain(name), WIDTH, break_on_hyphens=False)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][: WIDTH - 1] + "…"]
    return "\n".join(map(in_figure, lines))


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw charts in the style of the pages."""
    from matplotlib import style as styles

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: Any = {
        **dict.fromkeys(inked, INK),
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "grid.color": BASELINE,
        "grid.alpha": 0.3,
    }
    with styles.context(["default", style]):  # nothing of what others have set, as nnU-Net's plots do
        yield
