"""The study of study.md: real volumes, every method, several seeds, through ``nnunet_kd compare``.

    python benchmarks/study.py --raw nnUNet_raw --work WORK [--teachers FOLDER] [--parts tuning brats_r4 ...]

Preprocesses, trains the teachers that are missing, writes plans of the students, compares, and writes study.md and
study.png beside this file from the parts that are done. Stop it and start it again as you like: what is trained is
not trained again. ``--raw`` holds Dataset021_BraTSPatches (with its splits_final.json) and Dataset004_Hippocampus;
``--teachers`` holds results folders of stock teachers of fold 0 by data set.

Everything is decided in the part ``tuning``, on fold 1 of one data set with a teacher of that fold; the others report
fold 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_kd.evaluation.folders import Row
from nnunet_kd.evaluation.study import TEACHER
from nnunet_kd.evaluation.summary import Scores, Table, compare, mean_with_error
from nnunet_kd.planning import student_plans

HERE = Path(__file__).parent
METHODS = ("NoKD", "LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DCD", "DualSelfKD", "KD")
ROWS = {
    "DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
    "NoKD, reconstructed": {"trainer": "NoKD", "training": {"initial_weights": "reconstructed"}},
}
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
    """One ``nnunet_kd compare``.

    Attributes:
        title: In study.md.
        short: In its first table.
        data: Key of :data:`DATA`.
        reduction: Of the student's widths.
        methods: Trainers; the first is the baseline.
        rows: Further rows.
        ablation: Its rows too.
        fold: Of the cases that are evaluated.
    """

    title: str
    short: str
    data: str
    reduction: int
    methods: Sequence[str] = METHODS
    rows: Mapping[str, Any] = field(default_factory=lambda: ROWS)
    ablation: str | None = None
    fold: int = 0


SHORT = {"num_val_iterations_per_epoch": 5, "save_every": 5}
DATA = {
    "brats": Data(
        "Dataset021_BraTSPatches",
        {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT},
        {"num_epochs": 20, "num_iterations_per_epoch": 60, **SHORT},
    ),
    "hippocampus": Data(
        "Dataset004_Hippocampus",
        {"num_epochs": 40, "num_iterations_per_epoch": 50, **SHORT},
        {"num_epochs": 20, "num_iterations_per_epoch": 50, **SHORT},
    ),
}
TUNING = {
    "reconstructed": {"trainer": "NoKD", "training": {"initial_weights": "reconstructed"}},
    "reconstructed + logits": {
        "trainer": "KD",
        "method": {"terms": [LOGITS]},
        "training": {"initial_weights": "reconstructed"},
    },
    "reconstructed + DCD": {"trainer": "DCD", "training": {"initial_weights": "reconstructed"}},
}
PARTS = {
    "tuning": Part("Tuning: fold 1 of the BraTS patches, r = 4", "", "brats", 4, ("NoKD",), TUNING, fold=1),
    "brats_r4": Part("BraTS patches, a quarter of the width", "BraTS, r = 4", "brats", 4),
    "brats_r8": Part("BraTS patches, an eighth of the width", "BraTS, r = 8", "brats", 8),
    "hippocampus_r4": Part("Hippocampus, a quarter of the width", "Hippocampus, r = 4", "hippocampus", 4),
    "hippocampus_r8": Part("Hippocampus, an eighth of the width", "Hippocampus, r = 8", "hippocampus", 8),
    "ablation": Part("DCD's ablation, BraTS patches, r = 4", "", "brats", 4, ("NoKD", "DCD"), {}, "dcd"),
}


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
        self.device = device
        self.preprocessed, self.results = self.work / "nnUNet_preprocessed", self.work / "nnUNet_results"
        folders = {"nnUNet_raw": self.raw, "nnUNet_preprocessed": self.preprocessed, "nnUNet_results": self.results}
        for name, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        os.environ.setdefault("nnUNet_n_proc_DA", str(max(1, (os.cpu_count() or 2) - 1)))
        os.environ.setdefault("nnUNet_def_n_proc", "2")

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
            words = [data.folder, CONFIGURATION, str(fold), "-tr", trainer, "-p", TEACHER_PLANS, "-device", self.device]
            self.command("nnUNetv2_train", *words, *begun)
        return {"trainer": trainer, "plans": TEACHER_PLANS}

    def write_plans(self, data: Data, name: str, reduction: int, block: Mapping[str, Any]) -> None:
        """Plans of a student with settings."""
        folder = self.preprocessed / data.folder
        plans = student_plans(json.loads((folder / "nnUNetPlans.json").read_text()), reduction, name=name)
        plans["nnunet_kd"].update(block)
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=4))

    def compare(self, name: str, part: Part, seeds: Sequence[int]) -> None:
        """Writes ``WORK/name``."""
        data = DATA[part.data]
        self.preprocess(data)
        plans = f"study_r{part.reduction}" if part.fold == 0 else f"study_r{part.reduction}_fold{part.fold}"
        block = {"training": data.student, "teacher": self.teacher(data, part.fold), "method": {}}
        self.write_plans(data, plans, part.reduction, block)
        words = ["-d", data.folder, "-c", CONFIGURATION, "-f", str(part.fold), "-p", plans, "-device", self.device]
        words += ["-m", *part.methods, "--seeds", *map(str, seeds), "-o", str(self.work / name)]
        if part.rows:
            rows = self.work / f"{name}.json"
            rows.write_text(json.dumps(part.rows, indent=4))
            words += ["--rows", str(rows)]
        if part.ablation is not None:
            words += ["--ablation", part.ablation]
        self.command("nnunet_kd", "compare", *words)


def read_rows(path: Path) -> list[Row]:
    """Of ``metrics.json``; null is not a number."""
    rows = []
    for entry in json.loads(path.read_text()):
        names = {key: entry.pop(key) for key in ("method", "case", "structure")}
        values = {metric: float("nan") if value is None else float(value) for metric, value in entry.items()}
        rows.append(Row(**names, values=values))
    return rows


def done(work: Path) -> dict[str, Scores]:
    """Part -> what was measured, for those that are done and have all methods."""
    names = [name for name, part in PARTS.items() if part.methods == METHODS]
    files = {name: work / name / "metrics.json" for name in names}
    return {name: Scores(read_rows(path)) for name, path in files.items() if path.is_file()}


def overview(work: Path) -> str:
    """A row a method, two columns a part: mean Dice with its standard error, and the gap closed with its interval."""
    parts = done(work)
    methods = dict.fromkeys(method for scores in parts.values() for method in scores.methods)
    rows = {method: [method] for method in methods}
    for scores in parts.values():
        results = compare(scores, METHODS[0], TEACHER)
        for method, row in rows.items():
            row.append(mean_with_error(scores.of(method), "dice") if method in scores.methods else "-")
            gap = results[method].gap if method in results and method != TEACHER else None
            row.append("" if gap is None else f"{100 * gap.value:.0f} [{100 * gap.low:.0f}, {100 * gap.high:.0f}]")
    header = [text for name in parts for text in (f"{PARTS[name].short}: Dice (%)", "gap closed (%)")]
    return Table(["method", *header], list(rows.values())).markdown()


def page(work: Path) -> str:
    """Reports of the parts that are done, as ``nnunet_kd compare`` wrote them, without its rarer metrics."""
    sections = [
        "# A study on real volumes",
        "Made by `python benchmarks/study.py`, which trains with nnU-Net's own commands through `nnunet_kd compare`. "
        "Defaults are chosen in the part on tuning, on cases and with a teacher of another fold.",
    ]
    missing = [part.title for name, part in PARTS.items() if not (work / name / "report.md").is_file()]
    sections += [f"Not run yet: {'; '.join(missing)}."] if missing else []
    sections += [overview(work)] if done(work) else []
    for name, part in PARTS.items():
        report = work / name / "report.md"
        if report.is_file():
            text = report.read_text().partition("\n## Further metrics")[0].partition("\n")[2]
            sections += [f"## {part.title}", text.replace("\n## ", "\n### ").strip()]
    return "\n\n".join(sections) + "\n"


def picture(work: Path, target: Path) -> None:
    """Difference of every method to the baseline with its interval, a panel a part, and the teacher's."""
    from matplotlib.figure import Figure

    parts = done(work)
    if not parts:
        return
    figure = Figure(figsize=(2 + 2.6 * len(parts), 3.8))
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    for axes, (name, scores) in zip(panels, parts.items(), strict=True):
        results = compare(scores, METHODS[0], TEACHER)
        order = [*(method for method in scores.methods if method in results and method != TEACHER), TEACHER]
        for height, method in enumerate(reversed(order)):
            difference = results[method].difference
            low, value, high = (100 * number for number in (difference.low, difference.value, difference.high))
            colour = "0.5" if method == TEACHER else "C0"
            axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(order)), [*reversed(order)])
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlabel(f"Dice minus {METHODS[0]} (points)")
        axes.set_title(PARTS[name].short, fontsize=10)
        axes.grid(True, axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    """Carry out the parts, then write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--raw", type=Path, required=True, help="nnUNet_raw")
    options.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    options.add_argument("--teachers", type=Path, help="results folders of stock teachers of fold 0")
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=str(list(PARTS))
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    options.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    chosen = options.parse_args()
    for data in {PARTS[name].data: DATA[PARTS[name].data] for name in chosen.parts}.values():
        for folder in (chosen.raw, *([chosen.teachers] if chosen.teachers else [])):
            if not (folder / data.folder).is_dir():
                options.error(f"there is no {folder / data.folder}")
    workplace = Workplace(chosen.raw, chosen.work, chosen.teachers, chosen.device)
    for name in chosen.parts:
        workplace.compare(name, PARTS[name], chosen.seeds)
        (HERE / "study.md").write_text(page(workplace.work))
        picture(workplace.work, HERE / "study.png")


if __name__ == "__main__":
    main()
