"""The record of the study: one line per run, and the costs of the networks, kept beside the code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.study.parts import PARTS
from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.runs import TEACHER

RUNS = Path(__file__).parent / "runs"
STUDENT = "student"
SHOWN = ("dice", "hd95", "nsd")  # the metrics that are kept
SAME = 1e-4  # largest difference of mean Dice that another processor can make


def mean_dice(entry: Mapping[str, Any]) -> float:
    """Return the mean Dice of a record's line over the structures and cases that have one."""
    values = [value for values in entry["scores"]["dice"].values() for value in values if value is not None]
    return float(sum(values) / len(values))


def validated_dice(summary: Path) -> float:
    """Return the mean Dice in nnU-Net's summary of a validation."""
    cases = json.loads(summary.read_text())["metric_per_case"]
    values = [structure["Dice"] for case in cases for structure in case["metrics"].values()]
    known = [value for value in values if not math.isnan(value)]
    return float(sum(known) / len(known))


class Record:
    """The measurements of one part: a file with one line (JSON) for the teacher and one for every run.

    Args:
        name: The name of the part.
        folder: The folder of the file.
    """

    def __init__(self, name: str, folder: Path = RUNS) -> None:
        self.name, self.part, self.folder = name, PARTS[name], folder
        self._settings = {TEACHER: {}, **{row: self.part.settings(row) for row in self.part.rows}}
        self._entries: dict[tuple[str, int | None], dict[str, Any]] = {}
        for other, part in PARTS.items():  # a run that two parts share is trained once
            if (part.data, part.reduction, part.fold) == (self.part.data, self.part.reduction, self.part.fold):
                self._entries |= self._read(other)
        self._own = self._read(name)

    @property
    def path(self) -> Path:
        """The file of this part."""
        return self._path(self.name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _read(self, name: str) -> dict[tuple[str, int | None], dict[str, Any]]:
        """Return the entries of a file whose settings equal those of this part's rows."""
        entries = map(json.loads, self._lines(name))
        return {(e["method"], e["seed"]): e for e in entries if e["settings"] == self._settings.get(e["method"])}

    def _lines(self, name: str) -> list[str]:
        return self._path(name).read_text().splitlines() if self._path(name).is_file() else []

    def missing(self, seed: int) -> list[str]:
        """Return the rows without a run of this seed."""
        return [row for row in self.part.rows if (row, seed) not in self._entries]

    def whole_seeds(self) -> list[int]:
        """Return the seeds with a run of every row."""
        return sorted({seed for _, seed in self._entries if seed is not None and not self.missing(seed)})

    def is_finished(self) -> bool:
        """Return whether every row has a run of every seed of the part."""
        return {*self.part.seeds} <= {*self.whole_seeds()}

    def state(self) -> str:
        """Return the number of runs that are there, as text."""
        wanted = [(row, seed) for row in self.part.rows for seed in self.part.seeds]
        return f"{sum(key in self._entries for key in wanted)} of {len(wanted)} runs"

    def check_teacher(self, fold: Path, epochs: int) -> None:
        """Check, before students are trained, that their teacher is the one of the kept runs.

        Args:
            fold: The teacher's results, which can hold nnU-Net's validation.
            epochs: The number of epochs it was trained for.

        Raises:
            ValueError: If epochs or validation show that it is another teacher.
        """
        known = self._entries.get((TEACHER, None))
        summary = fold / "validation" / "summary.json"
        if known is None:
            return
        if known["epochs"] != epochs or (summary.is_file() and abs(validated_dice(summary) - mean_dice(known)) > SAME):
            raise self._another_teacher()

    def _another_teacher(self) -> ValueError:
        return ValueError(f"{self.folder} has runs of {self.part.title} with another teacher: remove them")

    def add(self, folder: Path, seed: int, teacher_epochs: int) -> None:
        """Add the runs of one seed that ``nnunet_kd compare`` has evaluated.

        Args:
            folder: The folder given to ``nnunet_kd compare -o``.
            seed: The seed of the runs.
            teacher_epochs: The number of epochs the teacher was trained for.

        Raises:
            ValueError: If another teacher was measured before.
        """
        by_method: dict[str, list[dict[str, Any]]] = {}
        for line in json.loads((folder / "metrics.json").read_text()):
            by_method.setdefault(line["method"], []).append(line)
        for method, lines in by_method.items():
            scores: dict[str, dict[str, list[Any]]] = {metric: {} for metric in SHOWN}
            for line in lines:
                for metric, structures in scores.items():
                    value = line[metric]
                    structures.setdefault(line["structure"], []).append(None if value is None else round(value, 5))
            entry: dict[str, Any] = {
                "method": method,
                "seed": None if method == TEACHER else seed,
                "settings": self._settings[method],
                "versions": {package: version(package) for package in ("nnunet_kd", "nnunetv2", "torch")},
                "scores": scores,
            }
            if method == TEACHER:
                entry["epochs"] = teacher_epochs
                entry["cases"] = list(dict.fromkeys(line["case"] for line in lines))
                if (known := self._entries.get((TEACHER, None))) is not None:
                    if known["cases"] != entry["cases"] or abs(mean_dice(known) - mean_dice(entry)) > SAME:
                        raise self._another_teacher()
                    continue
            self._own[method, entry["seed"]] = entry
        self._entries |= self._own
        text = "".join(json.dumps(entry) + "\n" for entry in self._own.values())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, text)

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The teacher's line: what all lines hold, the ``epochs`` of its training, and the evaluated ``cases``."""
        return self._entries[TEACHER, None]

    def rows(self, method: str, seed: int | None) -> list[Row]:
        """Return the metrics of one run."""
        scores, cases = self._entries[method, seed]["scores"], self.teacher["cases"]
        unknown = dict.fromkeys(METRICS, math.nan)
        return [
            Row(
                method,
                case,
                structure,
                {**unknown, **{m: math.nan if (v := scores[m][structure][i]) is None else v for m in SHOWN}},
                seed,
            )
            for i, case in enumerate(cases)
            for structure in scores[SHOWN[0]]
        ]

    def scores(self) -> Scores | None:
        """Return the scores of :meth:`all_rows`, or ``None`` while no seed is complete."""
        return Scores(self.all_rows()) if self.whole_seeds() else None

    def all_rows(self) -> list[Row]:
        """Return the metrics of the teacher and of all runs of the complete seeds."""
        runs = [(method, seed) for method in self.part.rows for seed in self.whole_seeds()]
        return [row for run in ((TEACHER, None), *runs) for row in self.rows(*run)]

    def versions(self) -> list[dict[str, str]]:
        """Return the versions of the packages that made the runs."""
        different = {json.dumps(entry["versions"]): entry["versions"] for entry in self._entries.values()}
        return list(different.values())

    def costs(self) -> dict[str, Measured] | None:
        """Return the costs of the teacher and of its students' network, or ``None`` before they are measured."""
        known = json.loads(self._costs.read_text()) if self._costs.is_file() else {}
        entry = known.get(self._network)
        if entry is None:
            return None
        return {who: Measured(**{**cost, "network": Cost(**cost["network"])}) for who, cost in entry.items()}

    def add_costs(self, teacher: Measured, student: Measured) -> None:
        """Keep the costs of the teacher and of its students' network."""
        known = json.loads(self._costs.read_text()) if self._costs.is_file() else {}
        known[self._network] = {TEACHER: asdict(teacher), STUDENT: asdict(student)}
        self._costs.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._costs, json.dumps(known, indent=1) + "\n")

    @property
    def _costs(self) -> Path:
        return self.folder / "costs.json"

    @property
    def _network(self) -> str:
        return f"{self.part.data}, r = {self.part.reduction}"
