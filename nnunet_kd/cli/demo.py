"""``nnunet_kd demo``: every step from data to distilled student, on synthetic data."""

from __future__ import annotations

import argparse
import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_kd.cli.device import default_device
from nnunet_kd.nnunet.reading import read_plans
from nnunet_kd.storage.integrity import is_whole
from nnunet_kd.storage.writing import check_writable_folder, new_folder, write_whole
from nnunet_kd.study.commands import Commands

_DESCRIPTION = """\
Run every step in a few minutes, on a GPU or a CPU: create a data set of synthetic heads with small lesions, plan and
preprocess it, train a teacher, a quarter-width student without distillation (NoKD) and the same student with DCD,
segment held-out cases, and print a table. Each step is a stock nnU-Net command and is shown as it runs. If you stop
the demo, the next run resumes where it stopped.

  nnunet_kd demo
      write everything to the folder demo
  nnunet_kd demo --out /tmp/demo
      write everything to another folder

The demo shows that your installation works. Its trainings are far too short to say anything about the methods.
"""

NAME = "Dataset599_SyntheticHeads"
TEACHER_PLANS, STUDENT_PLANS = "nnUNetPlans_teacher", "nnUNetPlans_r4"
# A student needs more steps than its teacher, and they are cheaper. The learning rate is high for so short a training.
SCHEDULES: dict[str, dict[str, Any]] = {
    TEACHER_PLANS: {"num_epochs": 7, "num_iterations_per_epoch": 25},
    STUDENT_PLANS: {"num_epochs": 8, "num_iterations_per_epoch": 36},
}
for _schedule in SCHEDULES.values():
    _schedule.update(num_val_iterations_per_epoch=4, initial_lr=0.03)
# Row of the table -> trainer and plans. The teacher is a student with widths divided by 1: it takes our schedule.
MODELS = {
    "teacher": ("nnUNetTrainerNoKD", TEACHER_PLANS),
    "NoKD": ("nnUNetTrainerNoKD", STUDENT_PLANS),
    "DCD": ("nnUNetTrainerDCD", STUDENT_PLANS),
}


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
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the steps that are not done yet and print the table; return the exit status."""
    check_writable_folder(arguments.out)
    demo = _Demo(arguments.out.resolve())
    demo.prepare()
    demo.plan()
    for model in MODELS:
        demo.train(model)
    for model in MODELS:
        demo.predict(model)
    demo.report()
    return 0


class _Demo:
    """The steps of the demo; each leaves a file that tells the next run that it is done."""

    def __init__(self, out: Path) -> None:
        self.out = out
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
        os.environ.setdefault("nnUNet_def_n_proc", "2")

    def prepare(self) -> None:
        """Create the data, and plan and preprocess them with nnU-Net."""
        from nnunet_kd.datasets.synthetic import make_dataset

        if not self.raw.is_dir():
            self.say(f"creating 24 training and 8 test cases in {self.raw}")
            with new_folder(self.raw) as unfinished:
                make_dataset(unfinished)
        if not (self.preprocessed / "preprocessed").is_file():
            options = ["-d", "599", "-c", "3d_fullres", "-np", "2", "-npfp", "2", "--verify_dataset_integrity"]
            self.command("preprocess", "nnUNetv2_plan_and_preprocess", *options)
            (self.preprocessed / "preprocessed").touch()

    def plan(self) -> None:
        """Write the plans of teacher and student, with a short schedule and batches of two."""
        from nnunet_kd.nnunet.planning import student_plans

        plans = read_plans(self.preprocessed / "nnUNetPlans.json")
        plans["configurations"]["3d_fullres"]["batch_size"] = 2
        for name, reduction in ((TEACHER_PLANS, 1), (STUDENT_PLANS, 4)):
            reduced = student_plans(deepcopy(plans), reduction, name=name)
            reduced["nnunet_kd"]["training"] = SCHEDULES[name]
            reduced["nnunet_kd"]["teacher"] = {"trainer": "nnUNetTrainerNoKD", "plans": TEACHER_PLANS}
            write_whole(self.preprocessed / f"{name}.json", json.dumps(reduced, indent=2))

    def model_folder(self, model: str) -> Path:
        trainer, plans = MODELS[model]
        return self.folders["nnUNet_results"] / NAME / f"{trainer}__{plans}__3d_fullres"

    def train(self, model: str) -> None:
        """Train fold 0 of a model with ``nnUNetv2_train``."""
        trainer, plans = MODELS[model]
        fold = self.model_folder(model) / "fold_0"
        if (fold / "validation" / "summary.json").is_file():
            return
        resume = ["--c"] if fold.is_dir() else []
        options = ["599", "3d_fullres", "0", "-tr", trainer, "-p", plans, "-device", default_device(), *resume]
        self.command(f"train_{model}", "nnUNetv2_train", *options, epochs=SCHEDULES[plans]["num_epochs"])

    def predict(self, model: str) -> None:
        """Segment the held-out cases with ``nnUNetv2_predict``."""
        trainer, plans = MODELS[model]
        output = self.out / "predictions" / model
        cases = len(list((self.raw / "labelsTs").glob("*.nii.gz")))
        if sum(map(is_whole, output.glob("*.nii.gz"))) == cases:
            return
        data = ["-i", str(self.raw / "imagesTs"), "-o", str(output), "-d", "599", "-c", "3d_fullres", "-f", "0"]
        workers = ["-npp", "1", "-nps", "1", "-device", default_device()]
        self.command(f"predict_{model}", "nnUNetv2_predict", *data, "-tr", trainer, "-p", plans, *workers)

    def report(self) -> None:
        """Write and print the table, and draw the picture."""
        from nnunet_kd.datasets.synthetic import LABELS
        from nnunet_kd.evaluation.measure import Model, measure_models
        from nnunet_kd.study.trainings import FINAL

        foreground = {value: name for name, value in LABELS.items() if value}
        head = f"{'':<10}" + "".join(f"{name + ' Dice':>16}" for name in foreground.values())
        lines = [head + f"{'parameters':>14}{'seconds per case':>18}"]
        models = {model: Model(self.model_folder(model) / "fold_0" / FINAL, "3d_fullres") for model in MODELS}
        for model, cost in measure_models(models, self.raw / "imagesTs", default_device()).items():
            dice = self.dice(model, list(foreground))
            scores = "".join(f"{dice[value]:>16.3f}" for value in foreground)
            lines.append(f"{model:<10}{scores}{cost.network.parameters:>14,}{cost.seconds:>18.2f}")
        table = "\n".join(lines)
        (self.out / "table.txt").write_text(table + "\n")
        picture = self.out / "comparison.png"
        self.draw(picture, foreground)
        self.say(f"8 held-out cases, one short training per model; seconds in the network with mirroring\n\n{table}\n")
        print(f"picture {picture}\ntable   {self.out / 'table.txt'}\ndone in {self.commands.minutes:.1f} minutes")

    def dice(self, model: str, labels: list[int]) -> dict[int, float]:
        """Return the mean Dice of every label over the held-out cases, from nnU-Net's own evaluation."""
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        predictions = self.out / "predictions" / model
        metrics = compute_metrics_on_folder(
            str(self.raw / "labelsTs"), str(predictions), None, SimpleITKIO(), ".nii.gz", labels, num_processes=1
        )
        return {label: float(metrics["mean"][label]["Dice"]) for label in labels}

    def draw(self, picture: Path, foreground: dict[int, str]) -> None:
        """Draw image, reference and every segmentation on the busiest slice of three cases."""
        import SimpleITK

        from nnunet_kd.evaluation.pictures import busiest_slice, draw_comparison

        def read(path: Path) -> Any:
            return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))

        rows = {}
        for path in sorted((self.raw / "labelsTs").glob("*.nii.gz"))[:3]:
            case = path.name.removesuffix(".nii.gz")
            reference = read(path)
            z = busiest_slice(reference)
            image = read(self.raw / "imagesTs" / f"{case}_0002.nii.gz")[z]
            models = {model: read(self.out / "predictions" / model / path.name)[z] for model in MODELS}
            rows[case] = (image, {"reference": reference[z], **models})
        draw_comparison(rows, foreground, aspect=1.2 / 1.3).savefig(picture, dpi=130)
