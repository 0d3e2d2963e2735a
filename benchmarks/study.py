"""The study of study.md: real volumes, every method, several seeds, through ``nnunet_kd compare``.

    python benchmarks/study.py --raw nnUNet_raw --work WORK [--teachers FOLDER] [--parts tuning brats_r4 ...]

Preprocesses, trains the teachers that are missing, writes plans of the students, compares, keeps every case's metrics
in the folder study/ beside this file, and writes study.md and study.png from what is kept there. Stop it and start it
again as you like, on another machine too: what is kept is not trained again. ``--raw`` holds Dataset021_BraTSPatches
(with its splits_final.json) and Dataset004_Hippocampus; ``--teachers`` holds results folders of stock teachers of
fold 0 by data set. Without both, the page is written again.

Everything is decided in the part ``tuning``, on fold 1 of one data set with a teacher of that fold; the others report
fold 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.folders import Row
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.report import Report, write_report
from nnunet_kd.evaluation.runs import ABLATIONS
from nnunet_kd.evaluation.study import TEACHER
from nnunet_kd.evaluation.summary import Scores, Table, average_runs, compare, mean_with_error
from nnunet_kd.planning import student_plans
from nnunet_kd.teachers.nnunet import find_trainer
from nnunet_kd.training.methods import active_terms
from nnunet_kd.writing import write_whole

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
SHOWN = ("dice", "hd95", "nsd")  # what is kept of METRICS
SAME = 1e-4  # difference of mean Dice that another processor may make
AT_ONCE = 3  # rows that one comparison trains; what is done is kept after each
BASELINE = "NoKD"
DISTILLING = ": distilling "  # in a training's log, before a term
METHODS: dict[str, Any] = {
    **{name: {"trainer": name} for name in (BASELINE, "LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DCD")},
    "DualSelfKD": {"trainer": "DualSelfKD"},
    "DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
    "KD": {"trainer": "KD"},
}
# glibc otherwise gives the memory of tensors back after every step and asks for it again.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
CONFIGURATION = "3d_fullres"
TEACHER_PLANS = "study_teacher"
LOGITS = {"name": "logits", "temperature": 1.0, "weight": 0.5}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        folder: Its name.
        teacher: Schedule of its teachers.
        student: Schedule of every student.
    """

    folder: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A data set, a reduction, and rows.

    Attributes:
        title: In study.md.
        short: In its first table; empty: not there.
        data: Key of :data:`DATA`.
        reduction: Of the student's widths.
        rows: As in a file for ``--rows``; the first is the baseline.
        fold: Of the cases that are evaluated.
        seeds: Of the page.
        training: Schedule where it differs from that of the data set's students.
        note: What was learned, above its tables.
    """

    title: str
    short: str
    data: str
    reduction: int
    rows: Mapping[str, Any]
    fold: int = 0
    seeds: Sequence[int] = SEEDS
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def schedule(self) -> dict[str, Any]:
        """Of every student, where its row says nothing else."""
        return {**DATA[self.data].student, **self.training}

    def settings(self, row: str) -> dict[str, Any]:
        """What its runs depend on, the defaults of its trainer included: a changed one makes it another run."""
        trainer, method = find_trainer(f"nnUNetTrainer{self.rows[row]['trainer']}"), self.rows[row].get("method", {})
        recipe = {} if "terms" in method else trainer.recipe
        training = {**recipe, **self.schedule, **self.rows[row].get("training", {})}
        terms = active_terms(trainer.terms, method, training["num_epochs"])
        return {"trainer": trainer.__name__, "training": training, "terms": [str(term) for term in terms]}

    def description(self, row: str) -> str:
        """Trainer, terms, and what differs from the schedule."""
        settings = self.settings(row)
        different = {key: value for key, value in settings["training"].items() if self.schedule.get(key) != value}
        words = [f"{key} {value}" for key, value in different.items()]
        return "; ".join([settings["trainer"], *settings["terms"], *words])


SHORT = {"num_val_iterations_per_epoch": 5, "save_every": 5}
DATA = {
    "brats": Data(
        "Dataset021_BraTSPatches",
        {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT},
        {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT},
    ),
    "hippocampus": Data(
        "Dataset004_Hippocampus",
        {"num_epochs": 40, "num_iterations_per_epoch": 50, **SHORT},
        {"num_epochs": 20, "num_iterations_per_epoch": 50, **SHORT},
    ),
}
IFVD_TENTH = [
    {"name": "ifvd", "weight": 20.0},
    {"name": "logits", "weight": 1.0, "temperature": 1.0, "scales": "full", "convex": False},
]
HALF = {"num_epochs": 20}  # schedule
FITTED = {"initial_weights": "reconstructed"}
TUNING = {
    BASELINE: METHODS[BASELINE],
    "NoKD, twice as long": {"trainer": "NoKD", "training": {"num_epochs": 40}},
    "NoKD, four times as long": {"trainer": "NoKD", "training": {"num_epochs": 80}},
    "every 4th channel": {"trainer": "NoKD", "training": {"initial_weights": "teacher"}},
    "reconstructed": {"trainer": "NoKD", "training": FITTED},
    "reconstructed, twice as long": {"trainer": "NoKD", "training": {**FITTED, "num_epochs": 40}},
    "reconstructed, EMA 0.99, twice as long": {
        "trainer": "NoKD",
        "training": {**FITTED, "ema_decay": 0.99, "num_epochs": 40},
    },
    "reconstructed + logits, twice as long": {
        "trainer": "KD",
        "method": {"terms": [LOGITS]},
        "training": {**FITTED, "num_epochs": 40},
    },
    "reconstructed, lr 0.003": {"trainer": "NoKD", "training": {**FITTED, "initial_lr": 0.003}},
    "reconstructed, EMA 0.99": {"trainer": "NoKD", "training": {**FITTED, "ema_decay": 0.99}},
    "EMA 0.99": {"trainer": "NoKD", "training": {"ema_decay": 0.99}},
    "DCD": METHODS["DCD"],
    "DCD 0.3": {"trainer": "DCD", "method": {"weight": 0.3}},
    "logits": {"trainer": "KD", "method": {"terms": [LOGITS]}},
    "reconstructed + logits": {"trainer": "KD", "method": {"terms": [LOGITS]}, "training": FITTED},
    "reconstructed + logits 0.9": {
        "trainer": "KD",
        "method": {"terms": [{**LOGITS, "weight": 0.9}]},
        "training": FITTED,
    },
    "reconstructed + DCD 0.3": {"trainer": "DCD", "method": {"weight": 0.3}, "training": FITTED},
    "reconstructed + FitNets": {"trainer": "FitNets", "training": FITTED},
    "reconstructed + CWD": {"trainer": "CWD", "method": {"weight": 3.0}, "training": FITTED},
    # The authors' weights, which are for 2-D natural images, and lower ones.
    **{
        f"{name} {weight:g}": {"trainer": name, "method": {"weight": weight}}
        for name, weights in (
            ("CWD", (3.0, 0.3, 0.03)),
            ("FitNets", (1.0, 0.1)),
            ("FreeKD", (1.0, 0.1)),
            ("LogitsKD", (0.3, 0.03)),
        )
        for weight in weights
    },
    "IFVD 200": {"trainer": "IFVD"},
    "IFVD 20": {"trainer": "KD", "method": {"terms": IFVD_TENTH}},
    "reconstructed + FreeKD": {"trainer": "FreeKD", "training": FITTED},
    "reconstructed + IFVD": {"trainer": "IFVD", "training": FITTED},
    "reconstructed + IFVD, EMA 0.99, twice as long": {
        "trainer": "IFVD",
        "training": {**FITTED, "ema_decay": 0.99, "num_epochs": 40},
    },
}
DECIDED = """\
Decided here, on one seed, with the next part in mind: the standard deviation between seeds is 2.6 points of Dice for a
student from random weights and 0.6 for a fitted one.

- **Schedule.** A student from random weights gains as much from twice the schedule as from the fitted start, and with
  four times the schedule comes near this teacher, which was trained half as long; so the reported parts train twice as
  long as most rows here.
- **Weights.** CWD's own leaves the student eleven points behind NoKD, a tenth six, a hundredth none: that is the
  default. A tenth of the others' is better by no more than 2.6, so these stay as their authors have them. FreeKD's
  and IFVD's are 5.5 and 5.8 points above NoKD of the same seed; NoKD's own seeds differ by up to 4.9.
- **Recipe.** Of what comes from the teacher only the fitted start pays on both schedules. Terms beside it change
  nothing or take from it; IFVD's gives two points in 20 epochs and takes 0.7 in 40. So the recipe has none. Averaged
  weights gave 0.3 to 1.1 points where no term was and cost nothing, so the recipe has them."""
SPREAD = {name: TUNING[name] for name in (BASELINE, "reconstructed")}
ABLATION = {
    **{name: METHODS[name] for name in (BASELINE, "DCD")},
    **{f"DCD {name}": {"trainer": "DCD", "method": keywords} for name, keywords in ABLATIONS["dcd"][1].items()},
}
PARTS = {
    "tuning": Part("Tuning: fold 1 of the BraTS patches, r = 4", "", "brats", 4, TUNING, 1, (0,), HALF, DECIDED),
    "spread": Part("Tuning: spread over seeds, fold 1, r = 4", "", "brats", 4, SPREAD, 1, SEEDS, HALF),
    "brats_r4": Part("BraTS patches, a quarter of the width", "BraTS, r = 4", "brats", 4, METHODS),
    "brats_r8": Part("BraTS patches, an eighth of the width", "BraTS, r = 8", "brats", 8, METHODS),
    "hippocampus_r4": Part("Hippocampus, a quarter of the width", "Hippocampus, r = 4", "hippocampus", 4, METHODS),
    "hippocampus_r8": Part("Hippocampus, an eighth of the width", "Hippocampus, r = 8", "hippocampus", 8, METHODS),
    "ablation": Part("DCD's ablation, BraTS patches, r = 4", "", "brats", 4, ABLATION),
}


def mean_dice(entry: Mapping[str, Any]) -> float:
    """Over the structures and cases that have one."""
    values = [value for values in entry["scores"]["dice"].values() for value in values if value is not None]
    return float(sum(values) / len(values))


class Record:
    """What was measured of a part: a file with a line (JSON) for the teacher and for every run.

    Args:
        name: Of the part.
        folder: Where the file is, or will be.
    """

    def __init__(self, name: str, folder: Path = HERE / "study") -> None:
        self.name, self.part, self.folder = name, PARTS[name], folder
        self._settings = {TEACHER: {}, **{row: self.part.settings(row) for row in self.part.rows}}
        self._entries: dict[tuple[str, int | None], dict[str, Any]] = {}
        for other, part in PARTS.items():  # a run of two parts is trained once
            if (part.data, part.reduction, part.fold) == (self.part.data, self.part.reduction, self.part.fold):
                self._entries |= self._read(other)
        self._own = self._read(name)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path(self.name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _read(self, name: str) -> dict[tuple[str, int | None], dict[str, Any]]:
        """What a file has that is still as the rows of this part are."""
        lines = self._path(name).read_text().splitlines() if self._path(name).is_file() else []
        entries = map(json.loads, lines)
        return {(e["method"], e["seed"]): e for e in entries if e["settings"] == self._settings.get(e["method"])}

    def missing(self, seed: int) -> list[str]:
        """Rows without a run of this seed."""
        return [row for row in self.part.rows if (row, seed) not in self._entries]

    def whole_seeds(self) -> list[int]:
        """Those that all rows have."""
        return sorted({seed for _, seed in self._entries if seed is not None and not self.missing(seed)})

    def state(self) -> str:
        """How much of it is there."""
        wanted = [(row, seed) for row in self.part.rows for seed in self.part.seeds]
        return f"{sum(key in self._entries for key in wanted)} of {len(wanted)} runs"

    def add(self, folder: Path, seed: int) -> None:
        """What ``nnunet_kd compare`` has written to its folder, of one seed.

        Raises:
            ValueError: Where another teacher was measured before.
        """
        costs = json.loads((folder / "costs.json").read_text())
        by_method: dict[str, list[dict[str, Any]]] = {}
        for line in json.loads((folder / "metrics.json").read_text()):
            by_method.setdefault(line["method"], []).append(line)
        for method, lines in by_method.items():
            scores: dict[str, dict[str, list[Any]]] = {metric: {} for metric in SHOWN}
            for line in lines:
                for metric, structures in scores.items():
                    value = line[metric]
                    structures.setdefault(line["structure"], []).append(None if value is None else round(value, 5))
            costs[method].pop("folder", None)
            entry = {
                "method": method,
                "seed": None if method == TEACHER else seed,
                "settings": self._settings[method],
                "versions": {package: version(package) for package in ("nnunet_kd", "nnunetv2", "torch")},
                "cost": costs[method],
                "scores": scores,
            }
            if method == TEACHER:
                entry["cases"] = list(dict.fromkeys(line["case"] for line in lines))
                if (known := self._entries.get((TEACHER, None))) is not None:
                    if known["cases"] != entry["cases"] or abs(mean_dice(known) - mean_dice(entry)) > SAME:
                        raise ValueError(
                            f"{self.folder} has runs of {self.part.title} with another teacher: remove them"
                        )
                    continue
            self._own[method, entry["seed"]] = entry
        self._entries |= self._own
        text = "".join(json.dumps(entry) + "\n" for entry in self._own.values())
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, text)

    def rows(self, method: str, seed: int | None) -> list[Row]:
        """Metrics of one run."""
        scores, cases = self._entries[method, seed]["scores"], self._entries[TEACHER, None]["cases"]
        unknown = dict.fromkeys(METRICS, math.nan)
        return [
            Row(
                method,
                case,
                structure,
                {**unknown, **{m: math.nan if (v := scores[m][structure][i]) is None else v for m in SHOWN}},
            )
            for i, case in enumerate(cases)
            for structure in scores[SHOWN[0]]
        ]

    def scores(self) -> Scores | None:
        """Teacher and all rows, the whole seeds averaged; ``None``: there are none."""
        return Scores(self._averaged()) if self.whole_seeds() else None

    def _averaged(self) -> list[Row]:
        rows = self.rows(TEACHER, None)
        for method in self.part.rows:
            rows += average_runs(method, [self.rows(method, seed) for seed in self.whole_seeds()])
        return rows

    def report(self) -> str:
        """Tables of the whole seeds, as of ``nnunet_kd compare`` (Markdown)."""
        seeds, data = self.whole_seeds(), DATA[self.part.data]
        costs = {name: self._cost(name, seed) for name, seed in ((TEACHER, None), (BASELINE, seeds[0]))}
        versions = {json.dumps(entry["versions"]): entry["versions"] for entry in self._entries.values()}
        report = Report(
            title=self.part.title,
            facts={
                "Data": f"{data.folder}, {CONFIGURATION}, widths of the teacher divided by {self.part.reduction}",
                "Cases": f"validation cases of fold {self.part.fold}; no student and no teacher has seen them",
                "Schedule": "{num_epochs} epochs of {num_iterations_per_epoch} iterations".format(**self.part.schedule)
                + f", seed {', '.join(map(str, seeds))}",
                **{row: self.part.description(row) for row in self.part.rows},
                "NSD": "tolerance 1 mm",
                "Cost": f"of the teacher and of {BASELINE}; all students are the same network",
                "Versions": "; ".join(
                    ", ".join(f"{name} {number}" for name, number in entry.items()) for entry in versions.values()
                ),
            },
            warnings=[],
            rows=self._averaged(),
            baseline=BASELINE,
            teacher=TEACHER,
            costs=costs,
            seeds={
                row: [float(np.nanmean(Scores(self.rows(row, seed)).of(row))) for seed in seeds]
                for row in self.part.rows
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            write_report(report, Path(folder))
            text = (Path(folder) / "report.md").read_text()
        text = text.partition("\n## Further metrics")[0].partition("\n")[2].replace("\n## ", "\n### ")
        return text.strip()

    def _cost(self, method: str, seed: int | None) -> Measured:
        entry = self._entries[method, seed]["cost"]
        return Measured(**{**entry, "network": Cost(**entry["network"])})


def check_runs(folder: Path, part: Part) -> None:
    """That the runs of a comparison are of today's terms: one that was there already may be of other defaults.

    Raises:
        ValueError: Naming what to remove.
    """
    for row, cost in json.loads((folder / "costs.json").read_text()).items():
        if row in part.rows:
            logs = Path(cost["folder"], f"fold_{part.fold}").glob("training_log_*.txt")
            lines = [line for log in logs for line in log.read_text().splitlines()]
            trained = {line.partition(DISTILLING)[2].strip() for line in lines if DISTILLING in line}
            if trained != set(part.settings(row)["terms"]):
                raise ValueError(f"{cost['folder']} was trained with other terms ({'; '.join(trained)}): remove it")


class Workplace:
    """nnU-Net's folders, and what is needed before students can be compared.

    Args:
        raw: ``nnUNet_raw``.
        work: Folder for everything that is made.
        teachers: Results folders of stock teachers by data set; ``None``: all are trained here.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, raw: Path, work: Path, teachers: Path | None, device: str) -> None:
        self.raw = raw.resolve()
        self.work = work.resolve()
        self.teachers = teachers
        self.on = ("-device", device)
        self.preprocessed, self.results = self.work / "nnUNet_preprocessed", self.work / "nnUNet_results"
        folders = {"nnUNet_raw": self.raw, "nnUNet_preprocessed": self.preprocessed, "nnUNet_results": self.results}
        for name, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        os.environ.setdefault("nnUNet_n_proc_DA", str(max(1, (os.cpu_count() or 2) - 1)))
        os.environ.setdefault("nnUNet_def_n_proc", "2")
        for name, value in MALLOC.items():
            os.environ.setdefault(name, value)

    def command(self, *words: str) -> None:
        """One that must succeed."""
        print("$ " + " ".join(words), flush=True)
        ended = subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]])
        if ended.returncode:
            sys.exit(f"{words[0]} failed; started again, the study goes on here")

    def preprocess(self, data: Data) -> None:
        """By the given teacher's plans, or by nnU-Net's own with batches of two."""
        folder = self.preprocessed / data.folder
        plans = folder / "nnUNetPlans.json"
        if (folder / "preprocessed").is_file():
            return
        number = str(int(data.folder[7:10]))
        given = self.given_teacher(data)
        if given is None:
            self.command("nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--no_pp")
            content = json.loads(plans.read_text())
            content["configurations"][CONFIGURATION]["batch_size"] = 2
            plans.write_text(json.dumps(content, indent=4))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(given / "plans.json", plans)
            for name in ("dataset.json", "dataset_fingerprint.json"):
                shutil.copy(given / name, folder / name)
            shutil.copytree(given, self.results / data.folder / given.name, dirs_exist_ok=True)
        self.command("nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION, "-np", "2")
        splits = self.raw / data.folder / "splits_final.json"
        if splits.is_file():
            shutil.copy(splits, folder / splits.name)
        (folder / "preprocessed").touch()

    def given_teacher(self, data: Data) -> Path | None:
        """Its results folder."""
        folder = f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
        path = self.teachers and self.teachers / data.folder / folder
        return path if path and path.is_dir() else None

    def teacher(self, data: Data, fold: int) -> dict[str, str]:
        """Trained where none is given for the fold; the ``teacher`` of plans."""
        if fold == 0 and self.given_teacher(data) is not None:
            return {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
        trainer = "nnUNetTrainerNoKD"
        block = {"student": {"reduction": 1}, "training": {**data.teacher, "seed": 7}}
        self.write_plans(data, TEACHER_PLANS, 1, block)
        results = self.results / data.folder / f"{trainer}__{TEACHER_PLANS}__{CONFIGURATION}" / f"fold_{fold}"
        if not (results / "checkpoint_final.pth").is_file():
            begun = ["--c"] if (results / "checkpoint_latest.pth").is_file() else []
            words = [data.folder, CONFIGURATION, str(fold), "-tr", trainer, "-p", TEACHER_PLANS]
            self.command("nnUNetv2_train", *words, *self.on, *begun)
        return {"trainer": trainer, "plans": TEACHER_PLANS}

    def write_plans(self, data: Data, name: str, reduction: int, block: Mapping[str, Any]) -> None:
        """Plans of a student with settings."""
        folder = self.preprocessed / data.folder
        plans = student_plans(json.loads((folder / "nnUNetPlans.json").read_text()), reduction, name=name)
        plans["nnunet_kd"].update(block)
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=4))

    def compare(self, name: str, seed: int, record: Record) -> None:
        """Trains and measures what the record has not, a few rows at a time."""
        part, data = PARTS[name], DATA[PARTS[name].data]
        self.preprocess(data)
        plans = f"study_r{part.reduction}" if part.fold == 0 else f"study_r{part.reduction}_fold{part.fold}"
        block = {"training": part.schedule, "teacher": self.teacher(data, part.fold), "method": {}}
        self.write_plans(data, plans, part.reduction, block)
        while missing := record.missing(seed)[:AT_ONCE]:
            print(f"{part.title}, seed {seed}: {', '.join(missing)}", flush=True)
            folder, rows = self.work / name, self.work / f"{name}.json"
            (folder / "metrics.json").unlink(missing_ok=True)
            rows.write_text(json.dumps({row: part.rows[row] for row in missing}, indent=4))
            words = ["-d", data.folder, "-c", CONFIGURATION, "-f", str(part.fold), "-p", plans, "-o", str(folder)]
            self.command("nnunet_kd", "compare", *words, "--rows", str(rows), "--seeds", str(seed), *self.on)
            check_runs(folder, part)
            record.add(folder, seed)


def overview(records: Mapping[str, Record]) -> str:
    """A row a method, two columns a part: mean Dice with its standard error, and the gap closed with its interval."""
    parts = {record.part.short: scores for record in records.values() if (scores := shown(record)) is not None}
    rows = {method: [method] for method in (TEACHER, *METHODS)}
    for scores in parts.values():
        results = compare(scores, BASELINE, TEACHER)
        for method, row in rows.items():
            row.append(mean_with_error(scores.of(method), "dice"))
            gap = results[method].gap if method in results and method != TEACHER else None
            row.append("" if gap is None else f"{100 * gap.value:.0f} [{100 * gap.low:.0f}, {100 * gap.high:.0f}]")
    header = [text for name in parts for text in (f"{name}: Dice (%)", "gap closed (%)")]
    return Table(["method", *header], list(rows.values())).markdown()


def shown(record: Record) -> Scores | None:
    """What the first table and the picture show of a part."""
    return record.scores() if record.part.short else None


def page(records: Mapping[str, Record]) -> str:
    """Tables of all parts of which every row was run with some seed."""
    sections = [
        "# A study on real volumes",
        "Made by `python benchmarks/study.py`, which trains with nnU-Net's own commands through `nnunet_kd compare`. "
        "Defaults are chosen in the part on tuning, on cases and with a teacher of another fold. The metrics of every "
        "run and case are in [study/](study).",
    ]
    left = [
        f"{record.part.title} ({record.state()})"
        for record in records.values()
        if not {*record.part.seeds} <= {*record.whole_seeds()}
    ]
    sections += [f"Not finished yet: {'; '.join(left)}."] if left else []
    sections += [overview(records)] if any(shown(record) for record in records.values()) else []
    for record in records.values():
        if record.whole_seeds():
            note = [record.part.note] if record.part.note else []
            sections += [f"## {record.part.title}", *note, record.report()]
    return "\n\n".join(sections) + "\n"


def picture(records: Mapping[str, Record], target: Path) -> None:
    """Difference of every method to the baseline with its interval, a panel a part, and the teacher's."""
    from matplotlib.figure import Figure

    parts = {record.part.short: scores for record in records.values() if (scores := shown(record)) is not None}
    if not parts:
        return
    figure = Figure(figsize=(2 + 2.6 * len(parts), 3.8))
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    order = [TEACHER, *(method for method in METHODS if method != BASELINE)][::-1]
    for axes, (name, scores) in zip(panels, parts.items(), strict=True):
        results = compare(scores, BASELINE, TEACHER)
        for height, method in enumerate(order):
            difference = results[method].difference
            low, value, high = (100 * number for number in (difference.low, difference.value, difference.high))
            colour = "0.5" if method == TEACHER else "C0"
            axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(order)), order)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlabel(f"Dice minus {BASELINE} (points)")
        axes.set_title(name, fontsize=10)
        axes.grid(True, axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def write_page(folder: Path = HERE) -> None:
    """``study.md`` and ``study.png`` from what is kept in ``study``."""
    records = {name: Record(name, folder / "study") for name in PARTS}
    (folder / "study.md").write_text(page(records))
    picture(records, folder / "study.png")


def main() -> None:
    """Carry out what is missing of the parts, then write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--raw", type=Path, help="nnUNet_raw")
    options.add_argument("--work", type=Path, help="folder for everything that is made")
    options.add_argument("--teachers", type=Path, help="results folders of stock teachers of fold 0")
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=str(list(PARTS))
    )
    options.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="default: all")
    options.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    chosen = options.parse_args()
    if (chosen.raw is None) != (chosen.work is None):
        options.error("--raw and --work go together")
    if chosen.raw is not None:
        for data in {PARTS[name].data: DATA[PARTS[name].data] for name in chosen.parts}.values():
            for folder in (chosen.raw, *([chosen.teachers] if chosen.teachers else [])):
                if not (folder / data.folder).is_dir():
                    options.error(f"there is no {folder / data.folder}")
        workplace = Workplace(chosen.raw, chosen.work, chosen.teachers, chosen.device)
        for seed in chosen.seeds:
            for name in (name for name in chosen.parts if seed in PARTS[name].seeds):
                workplace.compare(name, seed, Record(name))
                write_page()
    write_page()


if __name__ == "__main__":
    main()
