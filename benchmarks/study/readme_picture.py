"""The README's picture: teacher and student drawn to scale, with what was measured of them, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.study.figures import RECIPE, PartFigures
from benchmarks.study.parts import BASELINE
from benchmarks.study.record import STUDENT
from nnunet_kd.study.runs import TEACHER

PART = "brats_r4"
WIDTHS = 32, 64, 128, 256  # channels of the teacher's stages
GREY, BLUE, PALE, INK = "#8b95a5", "#2f6fdb", "#dfe4ec", "#1f2733"
AXIS = 50, 70  # ends of the Dice axis (%)


def picture(part: PartFigures) -> str:
    """Return the picture as SVG.

    Args:
        part: The figures of the part whose networks and Dice are shown.
    """
    costs = part.record.costs()
    assert costs is not None
    teacher, student = costs[TEACHER], costs[STUDENT]
    shapes = [
        _text(140, 38, "teacher", 20, weight="bold", anchor="middle"),
        *_network(140, 62, WIDTHS, GREY),
        _text(140, 246, f"{teacher.network.parameters / 1e6:.2f} M parameters", 15, anchor="middle"),
        _text(140, 268, f"{teacher.seconds:.2f} s per case", 15, anchor="middle"),
        '<path d="M268 132 H372" stroke="#1f2733" stroke-width="2.5" marker-end="url(#head)"/>',
        _text(318, 106, "prune and fit,", 13, anchor="middle"),
        _text(318, 122, "then train", 13, anchor="middle"),
        _text(470, 38, "student", 20, weight="bold", anchor="middle"),
        *_network(470, 62, [width // part.record.part.reduction for width in WIDTHS], BLUE),
        _text(470, 246, f"{student.network.parameters / 1e6:.2f} M parameters", 15, anchor="middle"),
        _text(470, 268, f"{student.seconds:.2f} s per case", 15, anchor="middle"),
        _text(640, 38, "Dice (%)", 20, weight="bold"),
        *_axis(228),
    ]
    rows = (
        ("teacher", TEACHER, GREY),
        ("student, nnUNetTrainerKD", RECIPE, BLUE),
        ("student alone", BASELINE, "#a9c4f5"),
    )
    for number, (label, row, colour) in enumerate(rows):
        shapes += _dots(86 + 58 * number, label, part.dice(row), colour)
    shapes.append(_text(640, 268, f"{part.record.part.short}: {len(part.dice(RECIPE))} seeds and their mean", 13))
    title = (
        f"A teacher of {teacher.network.parameters / 1e6:.2f} million parameters has a Dice of "
        f"{part.dice(TEACHER).mean():.1f} %, its student of {student.network.parameters / 1e6:.2f} million "
        f"{part.dice(RECIPE).mean():.1f} % with nnUNetTrainerKD and {part.dice(BASELINE).mean():.1f} % alone"
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 292" role="img" '
            'font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
            '<rect width="960" height="292" rx="12" fill="#ffffff"/>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _network(x: float, y: float, widths: Sequence[int], colour: str) -> list[str]:
    """Draw a U-Net around ``x``: a box per stage of encoder and decoder, as wide as it has channels."""
    shapes = []
    for stage, width in enumerate(widths):
        half, top = 0.2 * width, y + 42 * stage
        last = stage == len(widths) - 1
        for side in (0,) if last else (-1, 1):
            centre = x + side * (88 - 24 * stage)
            shapes.append(
                f'<rect x="{centre - half:.1f}" y="{top}" width="{2 * half:.1f}" height="26" rx="4" fill="{colour}"/>'
            )
        if not last:
            inside = 88 - 24 * stage - half
            shapes.append(
                f'<path d="M{x - inside:.1f} {top + 13} H{x + inside:.1f}" stroke="{PALE}" stroke-width="4"/>'
            )
    return shapes


def _axis(y: float) -> list[str]:
    """Draw the grid of the Dice axis down to ``y``."""
    shapes = []
    for tick in range(int(AXIS[0]), int(AXIS[1]) + 1, 5):
        shapes.append(f'<path d="M{_place(tick):.1f} 56 V{y}" stroke="{PALE}" stroke-width="1.5"/>')
        shapes.append(_text(_place(tick), y + 18, str(tick), 13, anchor="middle"))
    return shapes


def _place(dice: float) -> float:
    low, high = AXIS
    return 640 + 270 * (dice - low) / (high - low)


def _dots(y: float, label: str, seeds: Sequence[float], colour: str) -> list[str]:
    """Draw the mean of several seeds as a large dot and every seed as a small one, with their names above."""
    mean = sum(seeds) / len(seeds)
    small = [f'<circle cx="{_place(dice):.1f}" cy="{y}" r="3.5" fill="{INK}"/>' for dice in sorted({*seeds})]
    return [
        _text(640, y - 16, f"{label}: {mean:.1f}", 14, weight="bold"),
        f'<circle cx="{_place(mean):.1f}" cy="{y}" r="9" fill="{colour}"/>',
        *(small if len(small) > 1 else []),
    ]


def _text(x: float, y: float, text: str, size: int, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{INK}">{escape(text)}</text>'
    )
