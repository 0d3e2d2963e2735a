"""The steps of ``nnunet_kd distill``, each of which is one command, and what is done already."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.reading import read_json, read_splits
from nnunet_kd.nnunet.settings import BLOCK, read_settings
from nnunet_kd.storage.processes import BusyError, FileLock
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.commands import Commands
from nnunet_kd.teachers.find import TeacherFiles
from nnunet_kd.teachers.mapping import LabelMap
from nnunet_kd.teachers.models import opened_model, unpack_model
from nnunet_kd.workflow.given_images import check_images, note_images
from nnunet_kd.workflow.initial_weights import why_random
from nnunet_kd.workflow.plans import NAME as PLANS
from nnunet_kd.workflow.plans import Student, plans_of_student
from nnunet_kd.workflow.raw_dataset import Cases, find_cases, student_dataset, write_raw_dataset

DATASET = "Dataset001_Distilled"
NUMBER = "1"  # some of nnU-Net's commands know data sets only by number
TRAINER = "nnUNetTrainerSoftKD"
STORE = "teacher"
FINAL = "checkpoint_final.pth"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LOCK = "distill.lock"
_BEGUN = "distill.json"  # the request of the run that began a folder


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        model: The teacher: a zip file, a results folder, or a name in ``nnUNet_results``.
        folds: The folds that teach, numbers or ``all``; ``None`` for every fold that the model has.
        images: The folder of images, with nnU-Net's names and the teacher's channels.
        labels: The folder of references, which some or all cases have.
        student: What the student is to be.
        kept_back: The share of the cases that are kept back for the report.
        schedule: The training settings, as in the section ``training`` of the ``nnunet_kd`` block.
        mirroring: Whether the teacher's predictions of mirrored copies are averaged.
        skip_bad: Whether to leave out cases that cannot be read.
        onnx: Whether to export the student to ONNX, too.
        trust: Whether code in the files of the model may run.
        device: ``"cpu"`` or ``"cuda"``.
        processes: The number of processes that preprocess.
        launcher: The arguments with which the soft labels are computed in several jobs.
    """

    model: str
    folds: tuple[str, ...] | None
    images: Path
    labels: Path | None
    student: Student
    kept_back: float
    schedule: Mapping[str, Any]
    mirroring: bool = True
    skip_bad: bool = False
    onnx: bool = False
    trust: bool = False
    device: str = "cpu"
    processes: int = 1
    launcher: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what must not change between two runs in one folder."""
        given = asdict(self)
        for key in ("onnx", "device", "processes", "skip_bad", "trust", "launcher"):
            del given[key]
        for key in ("images", "labels"):
            given[key] = None if given[key] is None else str(Path(given[key]).resolve())
        if Path(self.model).exists():
            given["model"] = str(Path(self.model).resolve())
        given["folds"] = None if self.folds is None else list(self.folds)  # as JSON has it
        return given


@dataclass(frozen=True)
class Step:
    """A step of a distillation.

    Attributes:
        name: Its name, which is also that of its log file.
        words: Its command.
        done: The file or folder that exists once the step has ended.
        epochs: The number of epochs that it trains.
    """

    name: str
    words: tuple[str, ...]
    done: Path
    epochs: int | None = None


class Distillation:
    """A distillation in one folder, which a later run continues.

    Args:
        request: What the user asks for.
        out: The folder for everything.

    Raises:
        FileNotFoundError: If the model, its folds, or a folder does not exist.
        ValueError: If the model, the images, or the request do not fit each other, or the folder holds the
            distillation of another request.
    """

    def __init__(self, request: Request, out: Path) -> None:
        self.request = request
        self.out = out
        self._check_same()
        with opened_model(request.model, out, request.folds, trust=request.trust) as model:
            self.folds = [files.fold for files in model.folds]
            self.teacher: Experiment = model.experiment
            self.name = model.name
            self._folder = model.folds[0].checkpoint.parents[1]
            self._plan(model.folds[0])

    def _plan(self, first: TeacherFiles) -> None:
        """Find the cases, and derive the student's data set and plans.

        Args:
            first: The fold from which the initial weights come.
        """
        request, out = self.request, self.out
        self.cases: Cases = find_cases(request.images, request.labels, self.teacher.dataset_json)
        check_images(out, self.cases)
        self.dataset = student_dataset(
            self.teacher.dataset_json, self.cases, request.student.channels, request.student.label_map
        )
        LabelMap.of(request.student.label_map, self.teacher.dataset_json, self.dataset)  # refuses one that does not fit
        self.configuration = self.teacher.configuration
        image = str(next(iter(self.cases.images.values()))[0])
        self.reader = determine_reader_writer_from_dataset_json(dict(self.dataset), image, verbose=False)
        self.plans = plans_of_student(
            self.teacher,
            DATASET,
            self.reader.__name__,
            request.student,
            self.model_folder,
            self.folds[0] if self.folds[0] is not None else "all",
            request.schedule,
            {"soft_labels": STORE},
            request.trust,
        )
        read_settings(self.plans)  # refuses a schedule that the training would refuse
        student = Experiment(self.plans, self.configuration, dict(self.dataset))
        self.random_start = why_random(first, student)
        if self.random_start is not None:
            self.plans[BLOCK]["training"]["initial_weights"] = None

    @property
    def model_folder(self) -> Path:
        """The results folder of the teacher, which a zip file is unpacked into."""
        if Path(self.request.model).is_file():
            return self.out / "teacher" / Path(*self._folder.parts[-2:])
        return self._folder.resolve()

    @property
    def raw(self) -> Path:
        """The student's folder in ``nnUNet_raw``."""
        return self.out / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """The student's folder in ``nnUNet_preprocessed``."""
        return self.out / "nnUNet_preprocessed" / DATASET

    @property
    def results(self) -> Path:
        """The student's results folder."""
        return self.out / "nnUNet_results" / DATASET / f"{TRAINER}__{PLANS}__{self.configuration}"

    def environment(self) -> dict[str, str]:
        """Return nnU-Net's variables, which lead into the folder of the distillation."""
        return {name: str(self.out / name) for name in FOLDERS}

    def steps(self) -> Iterator[Step]:
        """Yield the steps after the preparation, in order."""
        request, folds = self.request, [str(fold) for fold in self.folds]
        where = ("-d", NUMBER, "-c", self.configuration)
        device = ("-device", request.device)
        yield Step(
            "preprocess",
            (
                *("nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", PLANS),
                *("-c", self.configuration, "-np", str(request.processes)),
            ),
            self.preprocessed / "preprocessed",
        )
        yield Step(
            "soft-labels",
            (
                *("nnunet_kd", "soft-labels", *where, "-p", PLANS, "--model", str(self.model_folder), "-f", *folds),
                *("-i", str(request.images.resolve()), "--name", STORE, "--continue"),
                *self._map(),
                *(() if request.mirroring else ("--disable_tta",)),
                *(("--trust",) if request.trust else ()),
                *device,
                *request.launcher,
            ),
            self.preprocessed / "taught",
        )
        fold = self.results / "fold_0"
        resume = ("--c",) if fold.is_dir() and any(fold.glob("checkpoint_*.pth")) else ()
        yield Step(
            "train",
            ("nnUNetv2_train", NUMBER, self.configuration, "0", "-tr", TRAINER, "-p", PLANS, *device, *resume),
            fold / "validation" / "summary.json",
            int(self.request.schedule["num_epochs"]),
        )
        predicted = self.out / "predictions" / "teacher"
        yield Step(
            "predict_teacher",
            (
                *("nnUNetv2_predict_from_modelfolder", "-i", str(self.out / "kept_back"), "-o", str(predicted)),
                *("-m", str(self.model_folder), "-f", *folds, "-npp", "1", "-nps", "1", "--continue_prediction"),
                *(() if request.mirroring else ("--disable_tta",)),
                *device,
            ),
            predicted / "predicted",
        )
        export = ("nnunet_kd", "export")
        of_student = (*where, "-tr", TRAINER, "-p", PLANS, "-f", "0")
        yield Step("export", (*export, "nnunet", *of_student, "-o", str(self.student_zip)), self.student_zip)
        if request.onnx:
            folder = self.out / "onnx"
            yield Step("export_onnx", (*export, "onnx", *of_student, "-o", str(folder)), folder)

    @property
    def student_zip(self) -> Path:
        """The student as a model of stock nnU-Net."""
        return self.out / "student.zip"

    @property
    def train_cases(self) -> list[str]:
        """The cases that the student trains on."""
        return read_splits(self.preprocessed / "splits_final.json")[0]["train"]

    @property
    def val_cases(self) -> list[str]:
        """The cases that are kept back."""
        return read_splits(self.preprocessed / "splits_final.json")[0]["val"]

    def prepare(self, commands: Commands) -> None:
        """Write the raw data set, the plans, the split, and links to the images that are kept back."""
        from tqdm import tqdm

        from nnunet_kd.nnunet.images import link_cases

        if self.random_start is not None:
            commands.say(f"initial weights: random, because {self.random_start}")
        if not (self.preprocessed / f"{PLANS}.json").is_file():
            write_whole(self.out / _BEGUN, json.dumps(self.request.identity(), indent=2))
            if Path(self.request.model).is_file() and not (self.out / "teacher").is_dir():
                commands.say(f"unpacking {self.request.model}")
                unpack_model(Path(self.request.model), self.out / "teacher")
            self._write_raw(commands, lambda cases: tqdm(cases, unit="case", desc="reading images"))
        if self.request.student.label_map is not None:
            write_whole(self.out / "labels.json", json.dumps(self.request.student.label_map, indent=2))
        kept = {case: self.cases.images[case] for case in self.val_cases}
        link_cases(
            self.out / "kept_back",
            kept,
            lambda case, number: f"{case}_{number:04d}{self.teacher.dataset_json['file_ending']}",
        )

    def _write_raw(self, commands: Commands, progress: Any) -> None:
        bad = write_raw_dataset(
            self.raw, self.cases, self.dataset, self.request.student.channels, self.request.skip_bad, progress
        )
        for why in bad.values():
            commands.say(f"left out: {why}")
        cases = sorted(case for case in self.cases.images if case not in bad)
        dataset = read_json(self.raw / "dataset.json")
        write_whole(self.preprocessed / "dataset.json", json.dumps(dataset, indent=2))
        split = split_cases(cases, self.cases.labels, self.request.kept_back)
        write_whole(self.preprocessed / "splits_final.json", json.dumps([split], indent=2))
        fingerprint = self.model_folder / "dataset_fingerprint.json"
        content = fingerprint.read_text(encoding="utf-8") if fingerprint.is_file() else "{}"
        write_whole(self.preprocessed / "dataset_fingerprint.json", content)
        note_images(self.out, self.cases, bad)
        write_whole(self.preprocessed / f"{PLANS}.json", json.dumps(self.plans, indent=2))

    def run(self, commands: Commands) -> None:
        """Run every step that is not done yet; a killed run is continued by the next one."""
        os.environ.update(self.environment())
        self.prepare(commands)
        for step in self.steps():
            if step.done.exists():
                commands.say(f"{step.name}: done before")
                continue
            commands.run(step.name, *step.words, epochs=step.epochs)
            if not step.done.exists():  # nnU-Net's preprocessing and prediction leave no file that says so
                write_whole(step.done, "")

    def script(self, first: Sequence[str]) -> str:
        """Return all commands as lines of a shell script.

        Args:
            first: The command that writes the raw data set and the plans.
        """
        variables = [f"export {name}={shlex.quote(value)}" for name, value in self.environment().items()]
        return "\n".join([*variables, shlex.join(first), *(shlex.join(step.words) for step in self.steps())])

    def _map(self) -> tuple[str, ...]:
        student = self.request.student
        words: tuple[str, ...] = ()
        if student.channels is not None:
            words += ("--channels", *map(str, student.channels))
        if student.label_map is not None:
            words += ("--label-map", str(self.out / "labels.json"))
        return words

    def _check_same(self) -> None:
        path = self.out / _BEGUN
        if not path.is_file():
            if self.out.is_dir() and any(entry.name != LOCK for entry in self.out.iterdir()):
                raise ValueError(f"{self.out} is not empty and holds no distillation: give another folder with -o")
            return
        before, now = read_json(path), self.request.identity()
        for key, value in now.items():
            old = before.get(key)
            if old != value:
                if isinstance(old, dict) and isinstance(value, dict):
                    key = next(name for name in {**old, **value} if old.get(name) != value.get(name))
                    old, value = old.get(key), value.get(key)
                raise ValueError(
                    f"{self.out} holds a distillation with {key} {old}, not {value}: give the same arguments to "
                    "continue it, or another folder with -o"
                )


def split_cases(cases: Sequence[str], labelled: Mapping[str, Path], share: float) -> dict[str, list[str]]:
    """Split cases into those that train and those that are kept back, with the same share of labelled cases in both.

    Args:
        cases: All cases.
        labelled: The cases that have a reference.
        share: The share of the cases that are kept back; at least one case is, and at least two train.
    """
    generator = np.random.default_rng(1234)
    kept: list[str] = []
    for group in ([c for c in cases if c in labelled], [c for c in cases if c not in labelled]):
        count = round(share * len(group)) if len(group) > 1 else 0
        kept += generator.permutation(sorted(group))[:count].tolist()
    if not kept:
        kept = [sorted(cases)[int(generator.integers(len(cases)))]]
    kept = kept[: max(1, len(cases) - 2)]
    return {"train": sorted(set(cases) - set(kept)), "val": sorted(kept)}


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no second distillation works in it.

    Raises:
        BusyError: If another process works in the folder.
    """
    try:
        lock = FileLock(out / LOCK)
    except BusyError as error:
        raise BusyError(
            f"process {error} is distilling in {out}: wait for it, or give another folder with -o"
        ) from error
    try:
        yield
    finally:
        lock.free()
