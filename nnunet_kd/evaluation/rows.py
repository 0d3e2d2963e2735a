"""Rows of metrics, one per method, seed, case and structure, and the files that they are written to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.storage.writing import write_whole


@dataclass(frozen=True)
class Row:
    """The metrics of one method for one structure in one case.

    Attributes:
        method: The name of the method.
        case: The name of the case.
        structure: The name of the structure.
        values: The metrics by name; NaN if a metric is not defined.
        seed: The seed of the training; ``None`` if the method was trained only once.
    """

    method: str
    case: str
    structure: str
    values: dict[str, float]
    seed: int | None = None


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``metrics.csv`` and ``metrics.json``, with one row per method, seed, case and structure.

    The seeds have a column only if a method has a seed. Both files are meant for programs, so names are written
    unchanged and quoted only as the format requires: a spreadsheet takes a name that begins with =, +, - or @ for a
    formula.

    Returns:
        The paths of the two files, each of which is complete or absent.
    """
    names = ["method", *(["seed"] if any(row.seed is not None for row in rows) else []), "case", "structure"]
    records = [{**{name: getattr(row, name) for name in names}, **_without_nan(row.values)} for row in rows]
    lines = [_line([*names, *METRICS])]
    lines += [_line(["" if value is None else value for value in record.values()]) for record in records]
    written = []
    for name, content in (("metrics.csv", "".join(lines)), ("metrics.json", json.dumps(records, indent=1))):
        write_whole(folder / name, content)
        written.append(folder / name)
    return written


def _line(cells: Sequence[str | float]) -> str:
    """Format a line of a CSV file, with quotes around cells that contain a comma, a quote or a line break."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # only this terminator makes it quote a lone \r
    return line.getvalue().removesuffix("\r\n") + "\n"


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
