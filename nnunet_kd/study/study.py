"""A study: the same student by several methods, on the same folds and seeds, trained with stock nnU-Net.

Every run is an ordinary nnU-Net training in ``nnUNet_results``. What a run differs in beside its trainer, a seed or
settings of its row, is written into plans of its own, ``PLANS_seed0`` or ``PLANS_dcd-lll``, beside the given ones.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.experiment import Experiment, find_trainer
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.nnunet.raw_cases import training_images
from nnunet_kd.nnunet.reading import read_dataset_json, read_json
from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE, TrainingSettings, read_settings
from nnunet_kd.storage.processes import BusyError, FileLock, holder_of
from nnunet_kd.storage.writing import check_writable_folder, write_whole
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.folds import Folds
from nnunet_kd.study.runs import Run
from nnunet_kd.teachers.leakage import not_kept_back, validated_cases
from nnunet_kd.training.results import LOCK

if TYPE_CHECKING:
    from nnunet_kd.training.preparation import Preparation

FINAL = "checkpoint_final.pth"


class Study:
    """Trains, and knows where everything lies.

    Args:
        dataset: ``DatasetXXX_Name``.
        configuration: nnU-Net's.
        plans: The student's plans as a dictionary.
        folders: nnU-Net's three: raw, preprocessed, results.
        out: Folder for predictions, logs and the report.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(
        self,
        dataset: str,
        configuration: str,
        plans: dict[str, Any],
        folders: tuple[Path, Path, Path],
        out: Path,
        device: str,
    ) -> None:
        self.dataset = dataset
        self.configuration = configuration
        self.plans = plans
        self.raw, self.preprocessed, self.results = (folder / dataset for folder in folders)
        self.out = out
        self.device = device
        self.commands = Commands(out / "logs")
        self.folds = Folds(self.preprocessed, plans, configuration)
        self.dataset_json: dict[str, Any] = read_dataset_json(self.preprocessed / "dataset.json")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other comparisons out of the folder, which is removed at the end where it was made for nothing.

        Raises:
            BusyError: Where another one works there.
        """
        made = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.out / "compare.lock")
        except BusyError as error:
            raise BusyError(
                f"another nnunet_kd compare works in {self.out} now (process {error}): run this one again when that "
                "has ended, or give another folder with -o"
            ) from None
        try:
            yield
        finally:
            lock.free()
            if made:
                with suppress(OSError):  # it is not empty
                    self.out.rmdir()

    # ---- plans

    def plans_of(self, run: Run) -> dict[str, Any]:
        """The given plans with the run's seed and settings; teacher and width are those of the given plans."""
        plans = deepcopy(self.plans)
        if run.plans == plans["plans_name"]:
            return plans
        settings = read_settings(plans)
        source = (settings.student.source_plans if settings.student else None) or plans["plans_name"]
        block = plans.setdefault(BLOCK, {})
        if settings.student is not None and settings.student.source_plans == self.plans["plans_name"]:
            block["student"]["source_plans"] = None  # still to be reduced, under whatever name
        teachers = block.setdefault("teacher", {})
        for teacher in teachers if isinstance(teachers, list) else [teachers]:
            if teacher.get("plans") is None and teacher.get("folder") is None:
                teacher["plans"] = source
        for section, values in run.settings.items():
            block[section] = {**block.get(section, {}), **values}
        if run.seed is not None:
            block.setdefault("training", {})["seed"] = run.seed
        plans["plans_name"] = run.plans
        return plans

    def prepared(self, run: Run) -> Preparation | None:
        """What its training reads first; ``None``: its trainer is not of this package.

        Raises:
            ValueError: For settings that are not valid, or a trainer nnU-Net does not find.
        """
        from nnunet_kd.training.preparation import prepare
        from nnunet_kd.training.trainer import DistillationTrainer

        trainer = find_trainer(run.trainer)
        if not issubclass(trainer, DistillationTrainer):
            return None
        return prepare(trainer, Experiment(self.plans_of(run), self.configuration, self.dataset_json), run.fold)

    def schedule_of(self, run: Run) -> TrainingSettings:
        """Of its plans and its trainer; ``None`` is nnU-Net's own."""
        try:
            preparation = self.prepared(run)
        except ValueError:  # its training will say so
            preparation = None
        return (read_settings(self.plans_of(run)) if preparation is None else preparation.settings).training

    def write_plans(self, runs: Sequence[Run]) -> None:
        """Plans of all runs that need their own; complete or not there.

        Raises:
            FileExistsError: Where other plans have the name.
        """
        wanted = {run.plans: self.plans_of(run) for run in runs if run.plans != self.plans["plans_name"]}
        for name, plans in wanted.items():
            path = self.preprocessed / f"{name}.json"
            if path.is_file() and read_json(path) != plans:
                raise FileExistsError(
                    f"{path} is there with other settings, of an earlier study perhaps: remove it with the results "
                    f"that belong to it, or give -p another name"
                )
        for name, plans in wanted.items():
            if not (self.preprocessed / f"{name}.json").is_file():
                write_whole(self.preprocessed / f"{name}.json", json.dumps(plans, indent=4))

    # ---- models

    def folder_of(self, run: Run) -> Path:
        """Results of a run, all folds."""
        return self.results / f"{run.trainer}__{run.plans}__{self.configuration}"

    def is_trained(self, run: Run) -> bool:
        """Whether its last checkpoint is there, and whole: nnU-Net's own trainers are killed while they write it."""
        return zipfile.is_zipfile(self.folder_of(run) / f"fold_{run.fold}" / FINAL)

    def last_checkpoint(self, run: Run) -> Path | None:
        """What its training ended with, or would go on from, where that is whole."""
        fold = self.folder_of(run) / f"fold_{run.fold}"
        checkpoints = (fold / name for name in (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth"))
        return next((path for path in checkpoints if zipfile.is_zipfile(path)), None)

    def check_idle(self, run: Run) -> None:
        """That no other process trains it now, as far as trainers of this package say.

        Raises:
            BusyError: Where one does.
        """
        fold = self.folder_of(run) / f"fold_{run.fold}"
        if (holder := holder_of(fold / LOCK)) is not None:
            raise BusyError(
                f"another process trains in {fold} now (process {holder}): run this again when it has ended; whatever "
                "is trained by then is kept"
            )

    def train(self, run: Run) -> None:
        """With nnUNetv2_train; goes on where it was stopped, does nothing where it has ended.

        Raises:
            RuntimeError: Where the command fails.
            UnwritableError: Where the results cannot be written.
            BusyError: Where that is because another process trains it.
        """
        if self.is_trained(run):
            return
        self.check_idle(run)
        fold = self.folder_of(run) / f"fold_{run.fold}"
        check_writable_folder(fold)
        for path in fold.glob("checkpoint_*.pth"):
            if not zipfile.is_zipfile(path):  # the directory of the archive is its end
                self.commands.say(f"{path} is cut off: removed")
                path.unlink()
        begun = any((fold / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))
        words = [self.dataset, self.configuration, str(run.fold), "-tr", run.trainer, "-p", run.plans]
        epochs = int(self.schedule_of(run).num_epochs or SCHEDULE["num_epochs"])
        try:
            self.commands.run(
                f"train_{run.trainer}__{run.plans}__fold_{run.fold}",
                "nnUNetv2_train",
                *words,
                "-device",
                self.device,
                *(["--c"] if begun else []),
                epochs=epochs,
            )
        except RuntimeError:
            self.check_idle(run)  # another process may have been faster
            raise

    # ---- cases

    def check_validated(self, model_folder: Path, fold: int) -> None:
        """That a model was not trained on a validation case of its fold, as far as nnU-Net has noted what it validated.

        Raises:
            ValueError: Where the fold has one it did not have then.
        """
        new = not_kept_back(validated_cases(model_folder / f"fold_{fold}"), self.folds.cases_of(fold), fold)
        if new is not None:
            raise ValueError(
                f"{model_folder} was trained without keeping back {new}: restore {self.folds.path}, or train it again"
            )

    def images_of(self, fold: int) -> Path:
        """A folder of links to the raw images of the fold's validation cases.

        Raises:
            ValueError: Where a case has no image.
        """
        images = training_images(self.raw, self.dataset_json, self.folds.cases_of(fold))
        ending = self.dataset_json["file_ending"]
        folder = self.out / "images" / f"fold_{fold}"
        return link_cases(folder, images, lambda case, channel: f"{case}_{channel:04d}{ending}")
