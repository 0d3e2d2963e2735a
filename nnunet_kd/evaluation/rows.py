"""Rows of metrics, one per method, seed, case and structure, and the files that they are written to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.storage.writing import write_whole

OVERALL = "overall_accuracy"


@dataclass(frozen=True)
class Row:
    """The metrics of one method for one structure in one case.

    Attributes:
        method: The name of the method.
        case: The name of the case.
        structure: The name of the structure.
        values: The metrics by name; NaN if a metric is not defined.
        seed: The seed of the training; ``None`` if the method was trained only once.
        confusion: The confusion matrix of the structure; ``None`` if it is not known, as in older files.
        right: The number of voxels of the whole case whose label is right, whatever the structure; ``None`` if it is
            not known.
    """

    method: str
    case: str
    structure: str
    values: dict[str, float]
    seed: int | None = None
    confusion: Confusion | None = None
    right: int | None = None

    @property
    def overall_accuracy(self) -> float:
        """The share of the case's voxels with the right label, all labels together; NaN if it is not known."""
        if self.confusion is None or self.right is None or not self.confusion.voxels:
            return math.nan
        return self.right / self.confusion.voxels


def write_rows(rows: Sequence[Row], folder: Path, name: str = "metrics") -> list[Path]:
    """Write ``NAME.csv`` and ``NAME.json``, with one row per method, seed, case and structure.

    The seeds have a column only if a method has a seed. The overall accuracy of the case and the voxels of the
    structure's confusion matrix follow the metrics if they are known. Both files are meant for programs, so names are
    written unchanged and quoted only as the format requires: a spreadsheet takes a name that begins with =, +, - or @
    for a formula.

    Returns:
        The paths of the two files, each of which is complete or absent.
    """
    keys = ["method", *(["seed"] if any(row.seed is not None for row in rows) else []), "case", "structure"]
    counted = all(row.confusion is not None for row in rows)
    records = []
    for row in rows:
        values = {metric: row.values[metric] for metric in METRICS}
        counts: dict[str, int] = {}
        if counted and row.confusion is not None:
            values[OVERALL] = row.overall_accuracy
            counts = asdict(row.confusion)
        records.append({**{key: getattr(row, key) for key in keys}, **_without_nan(values), **counts})
    lines = [_line([*keys, *METRICS, *([OVERALL, *(one.name for one in fields(Confusion))] if counted else [])])]
    lines += [_line(["" if value is None else value for value in record.values()]) for record in records]
    written = []
    for ending, content in ((".csv", "".join(lines)), (".json", json.dumps(records, indent=1))):
        write_whole(folder / f"{name}{ending}", content)
        written.append(folder / f"{name}{ending}")
    return written


def _line(cells: Sequence[str | float]) -> str:
    """Format a line of a CSV file, with quotes around cells that contain a comma, a quote or a line break."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # only this terminator makes it quote a lone \r
    return line.getvalue().removesuffix("\r\n") + "\n"


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
