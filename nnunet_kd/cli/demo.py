"""``nnunet_kd demo``: every step from data to distilled student, on synthetic data."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunet_kd.cli.device import default_device
from nnunet_kd.nnunet.reading import read_json, read_plans, read_splits
from nnunet_kd.storage.integrity import is_whole
from nnunet_kd.storage.writing import check_writable_folder, new_folder, write_whole
from nnunet_kd.study.commands import Commands

_DESCRIPTION = """\
Run every step within minutes, on a GPU or a CPU: create a data set of synthetic heads with small lesions, plan and
preprocess it, train a teacher and three students with a quarter of its width (alone, with DCD, and with this package's
recipe KD), each of which nnU-Net validates on held-out cases, and segment these with the best student, by nnU-Net and,
once it is exported, without PyTorch and nnU-Net. The end is a table and a page with pictures. Each step is a command
that you could type, and is shown as it runs; only the data and their fingerprint are made without one. If you stop the
demo, the next run resumes where it stopped.

  nnunet_kd demo
      write everything to the folder demo, and the page to demo/index.html
  nnunet_kd demo --out /tmp/demo
      write everything to another folder

The demo shows that your installation works. Its trainings are far too short to say anything about the methods.
"""

NAME = "Dataset599_SyntheticHeads"
TEACHER_PLANS, STUDENT_PLANS = "nnUNetPlans_teacher", "nnUNetPlans_student"
# Widths relative to nnU-Net's own, which are more than such small heads need.
REDUCTIONS = {TEACHER_PLANS: 2, STUDENT_PLANS: 8}
# The learning rates are high for so short trainings. The teacher finds the small structure in its 170 iterations, and
# KD, which starts from the teacher's weights, in its first epoch.
SCHEDULES: dict[str, dict[str, Any]] = {
    TEACHER_PLANS: {"num_epochs": 2, "num_iterations_per_epoch": 85, "initial_lr": 0.03},
    STUDENT_PLANS: {"num_epochs": 2, "num_iterations_per_epoch": 75, "initial_lr": 0.1},
}
for _schedule in SCHEDULES.values():
    _schedule.update(num_val_iterations_per_epoch=4)
# Row of the table -> trainer and plans. The teacher is a student by name only: so it takes our schedule.
MODELS = {
    "teacher": ("nnUNetTrainerNoKD", TEACHER_PLANS),
    "NoKD": ("nnUNetTrainerNoKD", STUDENT_PLANS),
    "DCD": ("nnUNetTrainerDCD", STUDENT_PLANS),
    "KD": ("nnUNetTrainerKD", STUDENT_PLANS),
}
CONFIGURATION = "3d_fullres"
LESIONS = 1.7  # larger ones than the synthetic data set has by default, so that short trainings find them


def add_parser(commands: Any) -> None:
    """Add the command ``demo`` and its arguments."""
    command = commands.add_parser(
        "demo",
        help="run every step on synthetic data in a few minutes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo"), help="folder for everything (default: demo)"
    )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the trainings (default: 0)")
    command.set_defaults(run=run, goes_on="; give the same command to go on")


def run(arguments: argparse.Namespace) -> int:
    """Run the steps that are not done yet and print the table; return the exit status."""
    check_writable_folder(arguments.out)
    demo = _Demo(arguments.out.resolve(), arguments.seed)
    demo.prepare()
    demo.plan()
    for model in MODELS:
        demo.train(model)
    return demo.report()


class _Demo:
    """The steps of the demo; each leaves a file that tells the next run that it is done."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        self.commands = Commands(out)
        self.say = self.commands.say
        self.command = self.commands.run
        self.folders = {name: out / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        self.raw = self.folders["nnUNet_raw"] / NAME
        self.preprocessed = self.folders["nnUNet_preprocessed"] / NAME
        for name, folder in self.folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        # By default, nnU-Net would start eight export processes for eight small cases.
        os.environ.setdefault("nnUNet_n_proc_DA", str(max(1, min(4, (os.cpu_count() or 2) - 1))))
        os.environ.setdefault("nnUNet_def_n_proc", "1")

    def prepare(self) -> None:
        """Create the data, and plan and preprocess them with nnU-Net."""
        from nnunet_kd.datasets.synthetic import make_dataset

        if not self.raw.is_dir():
            self.say(f"creating 30 cases in {self.raw}")
            with new_folder(self.raw) as unfinished:
                make_dataset(unfinished, training=30, test=0, lesions=LESIONS)
        if not (self.preprocessed / "dataset_fingerprint.json").is_file():
            self.say("extracting the fingerprint from a million intensities, of which nnU-Net would draw 100 million")
            _extract_fingerprint()
        if not (self.preprocessed / "preprocessed").is_file():
            options = ["-d", "599", "-c", CONFIGURATION, "-np", "2"]
            self.command("preprocess", "nnUNetv2_plan_and_preprocess", *options)
            (self.preprocessed / "preprocessed").touch()

    def plan(self) -> None:
        """Write the plans of teacher and student, with a short schedule and batches of two.

        Raises:
            ValueError: If the folder has the demo of other schedules or another seed.
        """
        from nnunet_kd.nnunet.planning import student_plans

        plans = read_plans(self.preprocessed / "nnUNetPlans.json")
        plans["configurations"][CONFIGURATION]["batch_size"] = 2
        for name, reduction in REDUCTIONS.items():
            reduced = student_plans(deepcopy(plans), reduction, name=name)
            reduced["nnunet_kd"]["training"] = {**SCHEDULES[name], "seed": self.seed}
            reduced["nnunet_kd"]["teacher"] = {"trainer": "nnUNetTrainerNoKD", "plans": TEACHER_PLANS}
            path = self.preprocessed / f"{name}.json"
            if path.is_file() and read_plans(path)["nnunet_kd"]["training"] != reduced["nnunet_kd"]["training"]:
                raise ValueError(
                    f"{self.out} has a demo with another seed or other schedules: give another folder with --out"
                )
            write_whole(path, json.dumps(reduced, indent=2))

    def model_folder(self, model: str) -> Path:
        trainer, plans = MODELS[model]
        return self.folders["nnUNet_results"] / NAME / f"{trainer}__{plans}__{CONFIGURATION}"

    def train(self, model: str) -> None:
        """Train fold 0 of a model with ``nnUNetv2_train``."""
        trainer, plans = MODELS[model]
        fold = self.model_folder(model) / "fold_0"
        if (fold / "validation" / "summary.json").is_file():
            return
        resume = ["--c"] if fold.is_dir() else []
        options = ["599", CONFIGURATION, "0", "-tr", trainer, "-p", plans, "-device", default_device(), *resume]
        self.command(f"train_{model}", "nnUNetv2_train", *options, epochs=SCHEDULES[plans]["num_epochs"])

    def predict(self, student: str) -> None:
        """Segment the held-out cases with ``nnUNetv2_predict``."""
        trainer, plans = MODELS[student]
        of_model = ["-d", "599", "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-p", plans]
        workers = ["-npp", "1", "-nps", "1", "-device", default_device()]
        self.timed(student, "nnUNetv2_predict", *self.held_out(student), *of_model, *workers)

    def export(self, student: str) -> None:
        """Export a student with ``nnunet_kd export onnx``, and segment the held-out cases without PyTorch."""
        trainer, plans = MODELS[student]
        exported, row = self.out / f"{student}_onnx", _exported(student)
        if not (exported / "model.json").is_file():
            of_model = ["-d", "599", "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-p", plans]
            self.command(f"export_{student}", "nnunet_kd", "export", "onnx", *of_model, "-o", str(exported))
        self.timed(row, "nnunet_kd", "predict", "-m", str(exported), *self.held_out(row))

    def held_out(self, row: str) -> list[str]:
        """Return the arguments that name the images of the held-out cases and the folder of their segmentations."""
        images = self.out / "held_out"
        images.mkdir(exist_ok=True)
        for case in self.cases:
            for path in (self.raw / "imagesTr").glob(f"{case}_*"):
                if not (images / path.name).exists():
                    shutil.copy(path, images)
        return ["-i", str(images), "-o", str(self.predictions(row))]

    @property
    def cases(self) -> list[str]:
        """The validation cases of fold 0, from which no model here has learnt."""
        return read_splits(self.preprocessed / "splits_final.json")[0]["val"]

    def validation(self, model: str) -> Path:
        """Return the folder in which nnU-Net's validation has left the segmentations of the held-out cases."""
        return self.model_folder(model) / "fold_0" / "validation"

    def predictions(self, row: str) -> Path:
        """Return the folder of the segmentations by a command whose time the table has."""
        return self.out / "predictions" / row.replace(", ", "_")

    def timed(self, row: str, *words: str) -> None:
        """Run a command that segments the held-out cases, unless it has ended before, and keep its seconds per case."""
        output = self.predictions(row)
        cases = len(self.cases)
        if self.seconds(row) is not None and sum(map(is_whole, output.glob("*.nii.gz"))) == cases:
            return
        start = time.monotonic()
        self.command(f"predict_{output.name}", *words)
        write_whole(output.with_suffix(".json"), json.dumps({"seconds_per_case": (time.monotonic() - start) / cases}))

    def seconds(self, row: str) -> float | None:
        """Return the seconds per case of the command that made the segmentations; ``None`` before it has ended."""
        path = self.predictions(row).with_suffix(".json")
        return float(read_json(path)["seconds_per_case"]) if path.is_file() else None

    def report(self) -> int:
        """Export the best student, write and print the table, and write the page; return the exit status."""
        from nnunet_kd.cli.demo_page import Result, in_words, result_table, write_page
        from nnunet_kd.evaluation.cost import configuration_cost
        from nnunet_kd.nnunet.reading import read_dataset_json

        results = {}
        described = read_dataset_json(self.raw / "dataset.json")
        parameters = {}
        for name in REDUCTIONS:
            plans = read_plans(self.preprocessed / f"{name}.json")
            parameters[name] = configuration_cost(plans, CONFIGURATION, described).parameters
        for model, (_, name) in MODELS.items():
            results[model] = Result(self.dice(self.validation(model)), parameters[name], None)
        best = max((model for model in MODELS if model != "teacher"), key=lambda model: results[model].mean)
        self.predict(best)
        results[best] = replace(results[best], seconds=self.seconds(best))
        missing = _missing_engine()
        if missing is None:
            self.export(best)
            row = _exported(best)
            results[row] = Result(self.dice(self.predictions(row)), results[best].parameters, self.seconds(row))
        else:
            self.say(missing)
        table = result_table(results)
        write_whole(self.out / "table.txt", table.markdown() + "\n")
        said = [*in_words(results), *([] if missing is None else [missing])]
        shown = {model: self.validation(model) for model in MODELS}
        write_page(self.out / "index.html", said, table, shown, self.raw, self.cases)
        self.say(f"{len(self.cases)} held-out cases, one short training per model\n\n" + table.markdown() + "\n")
        print("\n".join(said))
        print(f"page  {self.out / 'index.html'}\ndone in {self.commands.minutes:.1f} minutes")
        return 0

    def dice(self, folder: Path) -> dict[str, float]:
        """Return the mean Dice of every structure over the segmentations in a folder, by nnU-Net's own evaluation."""
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        from nnunet_kd.datasets.synthetic import LABELS

        labels = {name: value for name, value in LABELS.items() if value}
        folders = (str(self.raw / "labelsTr"), str(folder))
        metrics = compute_metrics_on_folder(
            *folders, None, SimpleITKIO(), ".nii.gz", list(labels.values()), num_processes=1
        )
        return {name: float(metrics["mean"][value]["Dice"]) for name, value in labels.items()}


def _extract_fingerprint() -> None:
    """Do what ``nnUNetv2_extract_fingerprint`` does, which takes a minute for its statistics of the intensities."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(NAME, num_processes=2)
    extractor.num_foreground_voxels_for_intensitystats = 1e6
    extractor.run()


def _exported(student: str) -> str:
    """Return the row of a student that was exported."""
    return f"{student}, exported"


def _missing_engine() -> str | None:
    """Return what to install if no student can be exported and run, otherwise ``None``."""
    engines = [name for name in ("openvino", "onnxruntime") if find_spec(name) is not None]
    if engines and all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript")):
        return None
    return "No student was exported: pip install 'nnunet_kd[onnx,openvino]', and run this again."
