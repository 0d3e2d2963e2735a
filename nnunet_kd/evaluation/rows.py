"""Metrics as rows, one per method, seed, case and structure, and the files that hold them."""

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
    """Metrics of one structure in one case, by one method.

    Attributes:
        seed: Of the training, where the method was trained with several.
    """

    method: str
    case: str
    structure: str
    values: dict[str, float]
    seed: int | None = None


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """``metrics.csv`` and ``metrics.json``, one row a method, case and structure; each is complete or absent.

    Where methods have seeds, there is a row a seed, and a column of them.

    Names are written as they are, quoted where they need it: both are for programs. A spreadsheet takes a name that
    begins with =, +, - or @ for a formula.
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
    """Of a CSV file; quoted where the cells hold a comma, a quote or any end of a line."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # only with both does it quote a lone \r
    return line.getvalue().removesuffix("\r\n") + "\n"


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
