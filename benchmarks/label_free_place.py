"""The folders, cases and commands of ``label_free.py``."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.images import images_by_case, link_cases
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans, read_splits
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.teachers.soft_labels import store_folder

CONFIGURATION = "3d_fullres"
DISTILLED = "Dataset001_Distilled"  # the names that nnunet_kd distill gives
DISTILLED_PLANS = "nnUNetPlans_distilled"
SOFT_KD = "nnUNetTrainerSoftKD"
ENDING = ".nii.gz"
FASTER = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",  # otherwise glibc returns the memory of tensors after every step
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "OMP_WAIT_POLICY": "passive",  # otherwise a waiting thread keeps its core from the process that makes the batches
    "nnUNet_n_proc_DA": "1",
    "nnUNet_def_n_proc": "2",
}
HALF, POOL, TEST, TUNING, UNSEEN, REST = "half", "pool", "test", "tuning", "unseen", "rest"
WHOLE_FOLD = 6  # trains on half and pool; folds 1 to 5 split both of them
Schedule = Mapping[str, int]


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        folder: The name of its folder.
        teacher: The schedule of teachers.
        student: The schedule of students.
        seen: The channels that the student with a missing modality sees.
        patient_ends: The text that follows a patient's name in the names of cases; empty if every case is a patient.
    """

    folder: str
    teacher: Schedule
    student: Schedule
    seen: Sequence[int] = ()
    patient_ends: str = ""

    def patient(self, case: str) -> str:
        """Return the patient that a case belongs to."""
        return case.partition(self.patient_ends)[0] if self.patient_ends else case


class Place:
    """The folders of one data set, and the commands that work in them.

    Args:
        data: The data set.
        raw: The folder that holds it.
        work: The folder for everything.
        teachers: The folder with results of stock teachers of fold 0, if there is one.
        device: ``"cpu"`` or ``"cuda"``.
        quick: Whether all trainings have two epochs of two steps.
    """

    def __init__(self, data: Data, raw: Path, work: Path, teachers: Path | None, device: str, quick: bool) -> None:
        self.data, self.quick = data, quick
        self.raw, self.work = raw.resolve() / data.folder, work.resolve() / data.folder
        path = teachers and teachers.resolve() / data.folder / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
        self.given = path if path and path.is_dir() else None
        self.on = ("-device", device)
        self.preprocessed = self.work / "nnUNet_preprocessed" / data.folder
        self.seconds = 0.0  # CPU seconds of the commands since it was set; NaN if some were run before
        os.environ.update({name: os.environ.get(name, value) for name, value in FASTER.items()})

    def schedule(self, given: Schedule) -> dict[str, int]:
        """Return a schedule as the plans have it, with a fifth of the steps for validation, as nnU-Net has."""
        epochs, steps = (2, 2) if self.quick else (given["epochs"], given["iterations"])
        return {
            "num_epochs": epochs,
            "num_iterations_per_epoch": steps,
            "num_val_iterations_per_epoch": max(1, steps // 5),
        }

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The cases of each group.

        Fold 0's training part is ``half`` and ``pool``; ``tuning`` is the part of the pool that tuning is scored on.
        Its validation part is ``test``, which is ``unseen`` and ``rest`` for teachers that have trained on all others.
        """
        all_cases = sorted(images_by_case(self.raw / "imagesTr", ENDING))
        given = self.raw / "splits_final.json"
        fold = (read_splits(given) if given.is_file() else generate_crossval_split(all_cases))[0]
        patients = sorted({self.data.patient(case) for case in fold["train"]})
        drawn = np.random.default_rng(0).permutation(patients).tolist()
        count = len(drawn) // 2
        of = {HALF: drawn[:count], POOL: drawn[count:], TUNING: drawn[count : count + count // 4]}
        drawn = np.random.default_rng(0).permutation(sorted({self.data.patient(case) for case in fold["val"]})).tolist()
        of |= {TEST: drawn, UNSEEN: drawn[: len(drawn) // 2], REST: drawn[len(drawn) // 2 :]}
        return {
            name: sorted(str(case) for case in all_cases if self.data.patient(case) in set(members))
            for name, members in of.items()
        }

    def cases(self, *groups: str, without: str = "") -> list[str]:
        """Return the cases of some groups, without those of another one."""
        left_out = self.groups[without] if without else []
        return sorted(case for group in groups for case in self.groups[group] if case not in left_out)

    def images(self, cases: Sequence[str], channels: Sequence[int] | None = None) -> Path:
        """Return a folder of links to the images of these cases; the channels are numbered anew."""
        found = images_by_case(self.raw / "imagesTr", ENDING)
        files = {case: [path for _, path in sorted(found[case].items())] for case in cases}
        if channels is not None:
            files = {case: [paths[channel] for channel in channels] for case, paths in files.items()}
        folder = self.work / "images" / self._digest([*cases, *map(str, channels or ())])
        if folder.is_dir():  # another process may be reading it
            return folder
        return link_cases(folder, files, lambda case, number: f"{case}_{number:04d}{ENDING}")

    def labels(self, cases: Sequence[str]) -> Path:
        """Return a folder of links to the references of these cases."""
        files = {case: [self.raw / "labelsTr" / f"{case}{ENDING}"] for case in cases}
        folder = self.work / "labels" / self._digest(cases)
        return folder if folder.is_dir() else link_cases(folder, files)

    @staticmethod
    def _digest(words: Sequence[str]) -> str:
        return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]

    def command(self, *words: str, within: Path | None = None) -> None:
        """Run a command, whose output goes to a log, and exit if it fails.

        Args:
            words: The command and its arguments.
            within: The folder of nnU-Net's three folders; by default that of the data set.
        """
        print("$ " + " ".join(words), flush=True)
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        folders = {name: str((within or self.work) / name) for name in names}
        log = self.work / "logs.txt"
        started = _used()
        with log.open("a") as output:
            program = str(Path(sys.executable).parent / words[0])
            ended = subprocess.run(
                [program, *words[1:]], env={**os.environ, **folders}, stdout=output, stderr=subprocess.STDOUT
            )
        if ended.returncode:
            sys.exit(f"{words[0]} failed, see {log}; the study continues from here when it is started again")
        self.seconds += _used() - started

    def prepare(self) -> None:
        """Preprocess with the given teacher's plans, or with nnU-Net's own and batches of two, and write the splits."""
        done = self.preprocessed / "prepared"
        if done.is_file():
            return
        linked = self.work / "nnUNet_raw" / self.data.folder
        linked.parent.mkdir(parents=True, exist_ok=True)
        if not linked.is_symlink():
            linked.symlink_to(self.raw)
        number = str(int(self.data.folder[7:10]))
        path = self.preprocessed / "nnUNetPlans.json"
        if self.given is None:
            self.command("nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--no_pp", "-npfp", "2")
            plans = read_plans(path)
            plans["configurations"][CONFIGURATION]["batch_size"] = 2
        else:
            plans = read_plans(self.given / "plans.json")
            for name in ("dataset.json", "dataset_fingerprint.json"):
                write_whole(self.preprocessed / name, (self.given / name).read_text())
        write_whole(path, json.dumps(plans, indent=4))
        self.command("nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION, "-np", "2")
        seen = self.cases(HALF, POOL)
        patients = sorted({self.data.patient(case) for case in seen})
        folds = [
            {name: [case for case in seen if self.data.patient(case) in set(part)] for name, part in fold.items()}
            for fold in generate_crossval_split(patients)
        ]
        half, whole = ({"train": cases, "val": self.groups[TEST]} for cases in (self.groups[HALF], seen))
        write_whole(self.preprocessed / "splits_final.json", json.dumps([half, *folds, whole], indent=1))
        write_whole(done, "")

    def train(self, trainer: str, plans: str, fold: int, reduction: int, block: Mapping[str, Any]) -> Path:
        """Write plans and train with them; return the results folder."""
        self.prepare()
        written = student_plans(read_plans(self.preprocessed / "nnUNetPlans.json"), reduction, name=plans)
        written["nnunet_kd"].update(block)
        write_whole(self.preprocessed / f"{plans}.json", json.dumps(written, indent=4))
        results = self.work / "nnUNet_results" / self.data.folder / f"{trainer}__{plans}__{CONFIGURATION}"
        if (results / f"fold_{fold}").is_dir():
            self.seconds = math.nan
        if not (results / f"fold_{fold}" / "validation" / "summary.json").is_file():
            begun = ["--c"] if any((results / f"fold_{fold}").glob("checkpoint_*.pth")) else []
            words = [self.data.folder, CONFIGURATION, str(fold), "-tr", trainer, "-p", plans]
            self.command("nnUNetv2_train", *words, *self.on, *begun)
        return results

    def distill(
        self,
        out: Path,
        model: Path,
        folds: Sequence[int],
        cases: Sequence[str],
        labelled: Sequence[str],
        reduction: int,
        seed: int,
        words: Sequence[str] = (),
        method: Mapping[str, Any] | None = None,
    ) -> Path:
        """Run ``nnunet_kd distill``; return the results folder of the student.

        Args:
            out: The folder of the distillation.
            model: The results folder of the teacher.
            folds: The folds that teach.
            cases: The cases whose images it gets.
            labelled: Those of which it gets the references.
            reduction: The factor that divides the widths.
            seed: The seed of the training.
            words: Further arguments.
            method: What is changed by hand in the section ``method`` of the student's plans.
        """
        schedule = self.schedule(self.data.student)
        given = ["nnunet_kd", "distill", "-m", str(model), "-f", *map(str, folds), "-i", str(self.images(cases))]
        given += ["-l", str(self.labels(labelled))] if labelled else []
        given += ["-r", str(reduction), "-o", str(out), "--seed", str(seed), "--kept-back", "0.05", "-np", "2"]
        given += ["--disable_tta"]  # an eighth of the time of mirroring
        given += ["--epochs", str(schedule["num_epochs"]), "--iterations", str(schedule["num_iterations_per_epoch"])]
        given += [*words, *self.on]
        if out.is_dir():
            self.seconds = math.nan
        if not (out / "report.html").is_file():
            self.command(*given, "--prepare")
            self._reuse_soft_labels(out, "-".join([model.name, *map(str, folds), *words]))
            plans = out / "nnUNet_preprocessed" / DISTILLED / f"{DISTILLED_PLANS}.json"
            content = read_plans(plans)
            if method is not None and not method.items() <= content["nnunet_kd"]["method"].items():
                content["nnunet_kd"]["method"] |= method
                write_whole(plans, json.dumps(content, indent=2))
            self.command(*given)
        return out / "nnUNet_results" / DISTILLED / f"{SOFT_KD}__{DISTILLED_PLANS}__{CONFIGURATION}"

    def _reuse_soft_labels(self, out: Path, key: str) -> None:
        """Link the soft labels that earlier distillations computed with the same teacher for the same grid.

        ``nnunet_kd soft-labels --continue``, which distill runs, checks that they belong to its cases and computes the
        others. So every teacher segments an image once, however many students there are.
        """
        write_whole(out / "reuse.txt", key)
        mine = self.store(out)
        for path in sorted(out.parent.glob("*/reuse.txt")):
            for file in sorted(self.store(path.parent).glob("*")) if path.read_text() == key else ():
                target = mine / file.name
                if file.name != "manifest.json" and file.is_file() and not target.exists():
                    mine.mkdir(parents=True, exist_ok=True)
                    target.hardlink_to(file)

    @staticmethod
    def store(out: Path) -> Path:
        """Return the folder of the soft labels of a distillation."""
        folder = out / "nnUNet_preprocessed" / DISTILLED
        return store_folder(folder, f"{DISTILLED_PLANS}_{CONFIGURATION}", "teacher")

    def segment(self, model: Path, folds: Sequence[int], images: Path, out: Path) -> Path:
        """Segment images with nnU-Net, unless that is done."""
        done = out / "segmented.txt"
        if not done.is_file():
            begun = sorted(out.glob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime)
            for path in begun[-1:]:
                path.unlink()  # nnU-Net may have been stopped while it wrote this one
            words = ["-i", str(images), "-o", str(out), "-m", str(model), "-f", *map(str, folds), *self.on]
            self.command("nnUNetv2_predict_from_modelfolder", *words, "-npp", "1", "-nps", "1", "--continue_prediction")
            write_whole(done, "")
        return out

    def score(self, name: str, segmentations: Path, cases: Sequence[str]) -> dict[str, list[float]]:
        """Return the Dice of every structure and case."""
        images = {case: [segmentations / f"{case}{ENDING}"] for case in cases}
        folder = link_cases(self.work / "scored" / name, images)
        out = self.work / "scores" / name
        words = ["-ref", str(self.labels(cases)), "-pred", f"it={folder}", "-djfile", str(self.raw / "dataset.json")]
        self.command("nnunet_kd", "evaluate", *words, "-o", str(out), "--overwrite")
        scores: dict[str, list[float]] = {}
        for line in json.loads((out / "metrics.json").read_text()):
            value = line["dice"]
            scores.setdefault(line["structure"], []).append(None if value is None else round(value, 5))
        return scores

    def voxels(self, model: Path, cases: Sequence[str]) -> int:
        """Return the mean number of voxels per case on the grid of a model."""
        spacing = read_plans(model / "plans.json")["configurations"][CONFIGURATION]["spacing"]
        counts = []
        for case in cases:
            image = sitk.ReadImage(str(self.raw / "imagesTr" / f"{case}_0000{ENDING}"))
            lengths = [size * width for size, width in zip(image.GetSize(), image.GetSpacing(), strict=True)][::-1]
            counts.append(np.prod([round(length / width) for length, width in zip(lengths, spacing, strict=True)]))
        return round(float(np.mean(counts)))


def _used() -> float:
    """Return the CPU seconds of all commands, which other work on the machine hardly changes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parameters(model: Path) -> int:
    """Return the number of parameters of a model."""
    plans, dataset_json = read_plans(model / "plans.json"), read_dataset_json(model / "dataset.json")
    with torch.device("meta"):
        network = build_network(find_trainer("nnUNetTrainer"), Experiment(plans, CONFIGURATION, dataset_json))
    return sum(weights.numel() for weights in network.parameters())
