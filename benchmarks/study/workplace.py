"""nnU-Net's folders and commands for the study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.study.parts import DATA, PARTS, Data
from benchmarks.study.record import Record
from nnunet_kd.evaluation.measure import Measured, measure
from nnunet_kd.nnunet.checkpoint import read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans

AT_ONCE = 3  # rows per comparison; its runs are kept when it ends
CONFIGURATION = "3d_fullres"
TEACHER_PLANS = "study_teacher"
MEASURED = 3  # measurements of each network, in turn
FASTER = {
    # Otherwise glibc returns the memory of tensors after every step and requests it again.
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    # Otherwise a waiting thread keeps its core from the process that makes the batches.
    "OMP_WAIT_POLICY": "passive",
}


class Workplace:
    """nnU-Net's folders, and the work that precedes a comparison of students.

    Args:
        raw: The folder ``nnUNet_raw``.
        work: The folder for plans, preprocessed data and results.
        teachers: The folder with results of stock teachers by data set; ``None`` to train all teachers.
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
        for name, value in FASTER.items():
            os.environ.setdefault(name, value)

    def command(self, *words: str) -> None:
        """Run a command, and exit if it fails."""
        print("$ " + " ".join(words), flush=True)
        ended = subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]])
        if ended.returncode:
            sys.exit(f"{words[0]} failed; the study continues from here when it is started again")

    def preprocess(self, data: Data) -> None:
        """Preprocess with the given teacher's plans, or with nnU-Net's own plans and batches of two."""
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
        """Return the results folder of the teacher that was given for a data set, or ``None``."""
        folder = f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
        path = self.teachers and self.teachers / data.folder / folder
        return path if path and path.is_dir() else None

    def teacher(self, data: Data, fold: int) -> dict[str, str]:
        """Train the teacher of a fold if none is given, and return the ``teacher`` section of its students' plans."""
        if fold == 0 and self.given_teacher(data) is not None:
            return {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
        trainer = "nnUNetTrainerNoKD"
        block = {"student": {"reduction": 1}, "training": {**data.teachers[fold], "seed": 7}}
        self.write_plans(data, TEACHER_PLANS, 1, block)
        results = self.results / data.folder / f"{trainer}__{TEACHER_PLANS}__{CONFIGURATION}" / f"fold_{fold}"
        if not (results / "checkpoint_final.pth").is_file():
            begun = ["--c"] if (results / "checkpoint_latest.pth").is_file() else []
            words = [data.folder, CONFIGURATION, str(fold), "-tr", trainer, "-p", TEACHER_PLANS]
            self.command("nnUNetv2_train", *words, *self.on, *begun)
        return {"trainer": trainer, "plans": TEACHER_PLANS}

    def results_of(self, data: Data, teacher: Mapping[str, str], fold: int) -> Path:
        """Return the results folder of a teacher's fold."""
        folder = f"{teacher['trainer']}__{teacher['plans']}__{CONFIGURATION}"
        return self.results / data.folder / folder / f"fold_{fold}"

    def write_plans(self, data: Data, name: str, reduction: int, block: Mapping[str, Any]) -> None:
        """Write plans of a student with the given settings."""
        folder = self.preprocessed / data.folder
        plans = student_plans(json.loads((folder / "nnUNetPlans.json").read_text()), reduction, name=name)
        plans["nnunet_kd"].update(block)
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=4))

    def measure_costs(self, name: str, record: Record) -> None:
        """Measure teacher and student in turn, so that the machine is equally busy for both.

        The student's weights are random, since they do not change its costs.
        """
        if record.costs() is not None:
            return
        part, data = PARTS[name], DATA[PARTS[name].data]
        self.preprocess(data)
        taught_by = self.results_of(data, self.teacher(data, part.fold), part.fold)
        checkpoints = (taught_by / "checkpoint_final.pth", self.untrained_student(taught_by, part.reduction))
        print(f"{part.title}: measuring teacher and student", flush=True)
        images, device = self.raw / data.folder / "imagesTr", self.on[1]
        rounds = [[measure(path, CONFIGURATION, images, device) for path in checkpoints] for _ in range(MEASURED)]
        record.add_costs(*(_middle(each) for each in zip(*rounds, strict=True)))

    def untrained_student(self, teacher: Path, reduction: int) -> Path:
        """Write a checkpoint of an untrained student of this teacher (a fold's results), and return its path."""
        plans = student_plans(
            read_plans(teacher.parent / "plans.json"), reduction, name=f"study_untrained_r{reduction}"
        )
        dataset_json = read_dataset_json(teacher.parent / "dataset.json")
        content = read_checkpoint(teacher / "checkpoint_final.pth")
        trainer = find_trainer("nnUNetTrainer")
        network = build_network(trainer, Experiment(plans, CONFIGURATION, dataset_json))
        content |= {"trainer_name": trainer.__name__, "network_weights": network.state_dict()}
        folder = self.work / "untrained" / f"{teacher.parents[1].name}_r{reduction}"
        (folder / "fold_0").mkdir(parents=True, exist_ok=True)
        (folder / "plans.json").write_text(json.dumps(plans, indent=4))
        shutil.copy(teacher.parent / "dataset.json", folder / "dataset.json")
        torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
        return folder / "fold_0" / "checkpoint_final.pth"

    def compare(self, name: str, seed: int, record: Record) -> None:
        """Train and evaluate the rows that the record lacks, a few at a time."""
        if not record.missing(seed):
            return
        part, data = PARTS[name], DATA[PARTS[name].data]
        self.preprocess(data)
        plans = f"study_r{part.reduction}" + (f"_fold{part.fold}" if part.fold else "")
        plans += f"_{part.schedule['num_epochs']}_epochs" if part.training else ""
        teacher = self.teacher(data, part.fold)
        taught_by = self.results_of(data, teacher, part.fold)
        epochs = int(read_checkpoint(taught_by / "checkpoint_final.pth")["current_epoch"])
        record.check_teacher(taught_by, epochs)
        if part.precision is not None:
            teacher["precision"] = part.precision
        block = {"training": part.schedule, "teacher": teacher, "method": {}}
        self.write_plans(data, plans, part.reduction, block)
        while missing := record.missing(seed)[:AT_ONCE]:
            print(f"{part.title}, seed {seed}: {', '.join(missing)}", flush=True)
            folder, rows = self.work / name, self.work / f"{name}.json"
            (folder / "metrics.json").unlink(missing_ok=True)
            rows.write_text(json.dumps({row: part.rows[row] for row in missing}, indent=4))
            words = ["-d", data.folder, "-c", CONFIGURATION, "-f", str(part.fold), "-p", plans, "-o", str(folder)]
            self.command("nnunet_kd", "compare", *words, "--rows", str(rows), "--seeds", str(seed), *self.on)
            record.add(folder, seed, epochs)


def _middle(rounds: Sequence[Measured]) -> Measured:
    """Return the medians of several measurements of one network."""
    seconds, peak = (median(getattr(each, name) for each in rounds) for name in ("seconds", "peak_bytes"))
    return replace(rounds[0], seconds=seconds, peak_bytes=peak)
