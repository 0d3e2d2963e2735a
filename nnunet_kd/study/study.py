"""A study: one student trained by several methods with stock nnU-Net, on the same folds and seeds.

Every run is an ordinary nnU-Net training in ``nnUNet_results``. A run with its own seed or settings has its own plans,
such as ``PLANS_seed0`` or ``PLANS_dcd-lll``, beside the given ones.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.experiment import Experiment, find_trainer
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.nnunet.raw_cases import training_images
from nnunet_kd.nnunet.reading import read_dataset_json, read_json
from nnunet_kd.nnunet.settings import TrainingSettings, read_settings
from nnunet_kd.storage.processes import BusyError, FileLock
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.folds import Folds
from nnunet_kd.study.plans import plans_of_run
from nnunet_kd.study.runs import Run
from nnunet_kd.study.trainings import FINAL, Training
from nnunet_kd.teachers.leakage import not_kept_back, validated_cases
from nnunet_kd.training.results import LOCK

if TYPE_CHECKING:
    from nnunet_kd.training.preparation import Preparation


class Study:
    """The trainings and folders of a study.

    Args:
        dataset: The name of the data set, ``DatasetXXX_Name``.
        configuration: The nnU-Net configuration.
        plans: The student's plans as a dictionary.
        folders: nnU-Net's folders for raw data, preprocessed data and results.
        out: The folder for predictions, logs and the report.
        device: The device, ``"cpu"`` or ``"cuda"``.
        other_plans: The plans that rows name in the place of the student's, by name.
    """

    def __init__(
        self,
        dataset: str,
        configuration: str,
        plans: dict[str, Any],
        folders: tuple[Path, Path, Path],
        out: Path,
        device: str,
        other_plans: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.configuration = configuration
        self.plans = plans
        self.other_plans = dict(other_plans or {})
        self.raw, self.preprocessed, self.results = (folder / dataset for folder in folders)
        self.out = out
        self.device = device
        self.commands = Commands(out / "logs")
        self.folds = Folds(self.preprocessed, plans, configuration)
        self.dataset_json: dict[str, Any] = read_dataset_json(self.preprocessed / "dataset.json")

    @property
    def _regions(self) -> bool:
        return bool(Experiment(self.plans, self.configuration, self.dataset_json).label_manager.has_regions)

    @contextmanager
    def alone(self, patience: float = 0.0) -> Iterator[None]:
        """Lock the folder against other comparisons; remove it at the end if it was created and is still empty.

        Args:
            patience: The number of seconds to wait for another comparison to end.

        Raises:
            BusyError: If another comparison is running there.
        """
        made = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock.within(patience, self.out / "compare.lock", self._say_who_works)
        except BusyError as error:
            raise BusyError(
                f"another nnunet_kd compare is running in {self.out} (process {error}): run this command again when it "
                "has ended, or give another folder with -o"
            ) from None
        try:
            yield
        finally:
            lock.free()
            if made:
                with suppress(OSError):  # it is not empty
                    self.out.rmdir()

    def _say_who_works(self, process: str) -> None:
        self.commands.say(f"another nnunet_kd compare works in {self.out} (process {process}): waiting for its end")

    # ---- plans

    def plans_of(self, run: Run) -> dict[str, Any]:
        """Return the plans of a run: those that its row names or the study's, with its network, settings and seed.

        Raises:
            ValueError: If the row's network cannot be had with these plans.
        """
        return plans_of_run(run, self.given_plans(run), self.configuration, self._regions)

    def given_plans(self, run: Run) -> dict[str, Any]:
        """Return the plans from which those of a run are derived."""
        return self.plans if run.network.plans is None else self.other_plans[run.network.plans]

    def prepared(self, run: Run) -> Preparation | None:
        """Return the preparation of a run's training, or ``None`` if its trainer is not of this package.

        Raises:
            ValueError: If settings are not valid, or nnU-Net does not find the trainer.
        """
        from nnunet_kd.training.preparation import prepare
        from nnunet_kd.training.trainer import DistillationTrainer

        trainer = find_trainer(run.trainer)
        if not issubclass(trainer, DistillationTrainer):
            return None
        return prepare(trainer, Experiment(self.plans_of(run), self.configuration, self.dataset_json), run.fold)

    def schedule_of(self, run: Run) -> TrainingSettings:
        """Return the schedule of a run from its plans and trainer; a value of ``None`` means nnU-Net's own."""
        try:
            preparation = self.prepared(run)
        except ValueError:  # its training will say so
            preparation = None
        return (read_settings(self.plans_of(run)) if preparation is None else preparation.settings).training

    def write_plans(self, runs: Sequence[Run]) -> None:
        """Write the plans of all runs that need their own; each file is complete or absent.

        Raises:
            FileExistsError: If a file of that name holds other plans.
        """
        given = {self.plans["plans_name"], *self.other_plans}
        wanted = {run.plans: self.plans_of(run) for run in runs if run.plans not in given}
        for name, plans in wanted.items():
            path = self.preprocessed / f"{name}.json"
            if path.is_file() and read_json(path) != plans:
                raise FileExistsError(
                    f"{path} exists with other settings, perhaps from an earlier study: remove it together with its "
                    f"results, or give plans of another name with -p"
                )
        for name, plans in wanted.items():
            if not (self.preprocessed / f"{name}.json").is_file():
                write_whole(self.preprocessed / f"{name}.json", json.dumps(plans, indent=4))

    # ---- models

    def folder_of(self, run: Run) -> Path:
        """Return the results folder of a run, which holds all folds."""
        return self.results / f"{run.trainer}__{run.plans}__{self.configuration}"

    def is_trained(self, run: Run) -> bool:
        """Return whether a run's final checkpoint is complete; a kill can truncate those of nnU-Net's own trainers."""
        return zipfile.is_zipfile(self.folder_of(run) / f"fold_{run.fold}" / FINAL)

    def last_checkpoint(self, run: Run) -> Path | None:
        """Return the complete checkpoint that a run ended with or would resume from, or ``None``."""
        fold = self.folder_of(run) / f"fold_{run.fold}"
        checkpoints = (fold / name for name in (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth"))
        return next((path for path in checkpoints if zipfile.is_zipfile(path)), None)

    def check_idle(self, run: Run) -> None:
        """Check that no other process is training a run; only trainers of this package tell.

        Raises:
            BusyError: If another process is training it.
        """
        self._training(run, None).check_idle()

    def train(self, run: Run) -> None:
        """Train a run with ``nnUNetv2_train``, resume it if it was stopped, or do nothing if it has finished.

        Raises:
            RuntimeError: If the command fails.
            UnwritableError: If the results cannot be written.
            BusyError: If another process is training the run.
        """
        if not self.is_trained(run):
            self.training(run).carry_out(self.commands)

    def training(self, run: Run) -> Training:
        """Return the training of a run, which can be carried out in another process, too."""
        return self._training(run, self.schedule_of(run).epochs)

    def _training(self, run: Run, epochs: int | None) -> Training:
        name = f"{run.method} (fold {run.fold}, plans {run.plans})"
        return self.training_of(name, run.trainer, run.plans, run.fold, epochs)

    def training_of(self, name: str, trainer: str, plans: str, fold: int | str, epochs: int | None) -> Training:
        """Return the training of any trainer on the study's data.

        Args:
            name: What messages and tables call it.
            trainer: The class name of the trainer.
            plans: The name of the plans.
            fold: The fold.
            epochs: The number of epochs that it trains, for the progress.
        """
        folder = self.results / f"{trainer}__{plans}__{self.configuration}" / f"fold_{fold}"
        words = ("nnUNetv2_train", self.dataset, self.configuration, str(fold), "-tr", trainer, "-p", plans)
        log = f"train_{trainer}__{plans}__fold_{fold}"
        return Training(name, log, (*words, "-device", self.device), folder, folder / LOCK, epochs)

    # ---- cases

    def check_validated(self, model_folder: Path, fold: int) -> None:
        """Check that a model was not trained on a validation case of its fold, as far as nnU-Net has recorded them.

        Raises:
            ValueError: If the fold has a validation case that it did not have during the training.
        """
        new = not_kept_back(validated_cases(model_folder / f"fold_{fold}"), self.folds.cases_of(fold), fold)
        if new is not None:
            raise ValueError(
                f"{model_folder} was trained without holding out {new}: restore the splits of its training in "
                f"{self.folds.path}, or train it again"
            )

    def images_of(self, fold: int) -> Path:
        """Return a folder of links to the raw images of a fold's validation cases.

        Raises:
            ValueError: If a case has no image.
        """
        images = training_images(self.raw, self.dataset_json, self.folds.cases_of(fold))
        ending = self.dataset_json["file_ending"]
        folder = self.out / "images" / f"fold_{fold}"
        return link_cases(folder, images, lambda case, channel: f"{case}_{channel:04d}{ending}")
