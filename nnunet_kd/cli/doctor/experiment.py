"""The checks of one experiment: its plans, data, student and teacher."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from nnunet_kd.cli.doctor.installation import may_write
from nnunet_kd.cli.doctor.stop import StopError
from nnunet_kd.nnunet.planning import network_in_words, usual_trainer
from nnunet_kd.nnunet.reading import channel_names, label_values

if TYPE_CHECKING:
    from nnunet_kd.nnunet.experiment import Experiment
    from nnunet_kd.teachers.soft_labels import SoftLabelStore
    from nnunet_kd.training.preparation import Preparation

OWN_FOLD = 'Fix: set nnunet_kd.teacher.folds to "same" in the plans'
OTHER_TEACHER = "Fix: train it again, or name another teacher in the plans as nnunet_kd.teacher"


class ExperimentChecks:
    """The checks of one student, which run in the order of the methods.

    Each check returns what it found, or ``None`` if there is nothing to report, and raises an error that says what is
    wrong and how to fix it.

    Args:
        arguments: The arguments of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder = Path()
        self.experiment: Experiment
        self.trainer_name = ""
        self.trainer: Any = None
        self.preparation: Preparation | None = None  # set once the student's network can be built

    @property
    def path(self) -> Path:
        """The file of the student's plans."""
        return self.folder / f"{self.arguments.p}.json"

    @property
    def fold(self) -> int | str:
        """The fold of the student."""
        return self.arguments.f if self.arguments.f == "all" else int(self.arguments.f)

    def read_plans(self) -> str:
        """Check that the plans and ``dataset.json`` exist, can be read and have the configuration."""
        from nnunet_kd.cli.dataset_folder import open_experiment, preprocessed_folder

        arguments = self.arguments
        try:
            self.folder = preprocessed_folder(arguments.d)
        except ValueError as error:
            raise StopError(f"{error}. Fix: give the full name of the data set with -d") from error
        try:
            self.experiment = open_experiment(arguments.d, arguments.p, arguments.c, arguments.trust)
        except (ValueError, FileNotFoundError) as error:
            described = str(self.folder / "dataset.json") in str(error)
            raise StopError(f"{error}{' (Fix: edit it, there and in nnUNet_raw)' if described else ''}") from error
        return f"plans {self.path}"

    @property
    def plans(self) -> dict[str, Any]:
        """The plans, once :meth:`read_plans` has read them."""
        return self.experiment.plans

    @property
    def dataset_json(self) -> dict[str, Any]:
        """nnU-Net's ``dataset.json``, once :meth:`read_plans` has read it."""
        return self.experiment.dataset_json

    def description(self) -> str:
        """Check that ``dataset.json`` names channels, and labels that nnU-Net can train on."""
        path = self.folder / "dataset.json"
        channels, labels = channel_names(self.dataset_json), self.dataset_json["labels"]
        if not channels:
            raise StopError(f"{path} has no 'channel_names'. Fix: add them, there and in nnUNet_raw")
        named = {name: label_values(value) for name, value in labels.items() if name != "ignore"}
        values = sorted({value for region in named.values() for value in region})
        if all(len(region) == 1 for region in named.values()) and values != [*range(len(values))]:
            raise StopError(
                f"the labels in {path} are {', '.join(map(str, values))}, but nnU-Net needs consecutive labels. "
                "Fix: number them from 0, in dataset.json and in labelsTr"
            )
        return f"channels {', '.join(map(str, channels.values()))}; labels {', '.join(labels)}"

    def preprocessed(self) -> str:
        """Check that there are preprocessed cases, and the files that every training needs beside them."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_kd.nnunet.dataset_names import dataset_number
        from nnunet_kd.nnunet.images import is_left_over

        identifier = PlansManager(self.plans).get_configuration(self.arguments.c).data_identifier
        cases = sum(not is_left_over(path.name) for path in (self.folder / identifier).glob("*.pkl"))
        if not cases:
            raise ValueError(
                f"nothing is preprocessed in {self.folder / identifier}. "
                f"Fix: nnUNetv2_preprocess -d {dataset_number(self.folder.name)} -plans_name {self.arguments.p} "
                f"-c {self.arguments.c}"
            )
        if not (self.folder / "dataset_fingerprint.json").is_file():  # nnU-Net copies it to the results
            raise ValueError(
                f"there is no {self.folder / 'dataset_fingerprint.json'}, without which no training can start. "
                f"Fix: nnUNetv2_extract_fingerprint -d {dataset_number(self.folder.name)}"
            )
        if self.fold != "all" and not (self.folder / "splits_final.json").is_file() and not may_write(self.folder):
            raise ValueError(
                f"{self.folder} cannot be written to, and the first training writes splits_final.json there. "
                f"Fix: chmod u+w {quote(str(self.folder))}, or ask the owner of the folder"
            )
        listed = self.dataset_json.get("numTraining", cases)
        beside = "" if listed == cases else f", dataset.json says {listed}"
        return f"{cases} preprocessed cases in {self.folder / identifier}{beside}"

    def cases(self) -> str:
        """Check that all preprocessed cases can be read and hold finite values and declared labels."""
        import torch
        from tqdm import tqdm

        from nnunet_kd.nnunet.cases import PreprocessedCases
        from nnunet_kd.training.faults import BatchCheck

        cases = PreprocessedCases(self.folder, self.experiment)
        check = BatchCheck(cases.channels, cases.labels, raw=True)
        faults: list[str | None] = []
        for case in tqdm(cases.identifiers, unit="case", leave=False):
            try:
                images, labels = (torch.from_numpy(array) for array in cases.load(case))
            except (RuntimeError, ValueError, OSError) as error:
                faults.append(f"{case} cannot be read ({error})")
                continue
            batch = {
                "data": images[None],
                "target": labels[None, None].clamp(min=0),
                "keys": [case],
            }  # -1: outside the body
            faults.append(check(batch))
        found = [fault for fault in faults if fault is not None]
        if found:
            raise ValueError("; ".join(found))
        return f"all values of {len(cases.identifiers)} cases are finite, and all labels are declared"

    def find_trainer(self) -> str:
        """Check that nnU-Net finds the student's trainer."""
        from nnunet_kd.nnunet.experiment import find_trainer

        self.trainer_name = self.arguments.tr or usual_trainer(self.plans, self.arguments.c)
        try:
            self.trainer = find_trainer(self.trainer_name)
        except ValueError as error:
            raise StopError(f"{error}. Fix: name another trainer with -tr") from None
        return f"trainer {self.trainer_name}"

    def student(self) -> str:
        """Check that the student's settings are valid, and that its network can be built and takes a patch."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_kd.cli.doctor.network import built_network
        from nnunet_kd.training.preparation import prepare
        from nnunet_kd.training.trainer import DistillationTrainer

        preparation, experiment = None, self.experiment
        if issubclass(self.trainer, DistillationTrainer):
            preparation = prepare(self.trainer, experiment, self.fold)
            experiment = preparation.student
        network = built_network(self.trainer, experiment, self.path)
        self.preparation = preparation
        architecture = PlansManager(experiment.plans).get_configuration(self.arguments.c).configuration["architecture"]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return f"the network to train is {network_in_words(architecture)}, {parameters:,} parameters"

    def first_stage(self) -> str | None:
        """Check that the segmentations for the second stage of a cascade exist; ``None`` without a cascade."""
        from nnunet_kd.nnunet.cascade import FirstStage

        first = FirstStage.of(self.plans, self.arguments.c, self.trainer_name, self.arguments.p)
        if first is None:
            return None
        if first.missing:
            raise ValueError(
                f"{self.arguments.c} needs segmentations by {first.configuration}, and {len(first.missing)} of "
                f"{len(first.cases)} cases have none in {first.folder}. Fix: {' && '.join(first.commands)}"
            )
        return f"segmentations of {len(first.cases)} cases by {first.configuration}"

    def teacher(self) -> str | None:
        """Check that the teacher and the soft labels exist and fit; ``None`` if the student cannot be built."""
        from nnunet_kd.training.leakage import soft_label_leakage, soft_label_teachers, unchecked
        from nnunet_kd.training.results import check_results, results_of
        from nnunet_kd.training.sources import attach_soft_labels, attach_teacher, start_from_teacher
        from nnunet_kd.training.trainer import DistillationTrainer

        if not issubclass(self.trainer, DistillationTrainer):
            return f"{self.trainer_name} is not a trainer of this package: no teacher to check"
        preparation = self.preparation
        if preparation is None:
            return None
        results = results_of(self.trainer_name, preparation.student)
        if results is not None:
            check_results(results, preparation.student)
        store = attach_soft_labels(self.trainer, preparation)
        if store is not None and (leak := soft_label_leakage(preparation, store)) is not None:
            by_itself = store.leakage(self.fold) is not None
            raise ValueError(f"{leak} {self._soft_labels_without_leak(store) if by_itself else OTHER_TEACHER}")
        weights = getattr(preparation.method, "checkpoint", None)
        if weights is not None and not Path(weights).is_file():
            raise ValueError(
                f"there are no weights of SAM in {weights}. Fix: name them in the plans as nnunet_kd.method.checkpoint"
            )
        stored = "" if store is None else f", the soft labels '{store.name}' were found and fit"
        fix = OTHER_TEACHER if preparation.leakage is None else OWN_FOLD
        files = [] if store is None else soft_label_teachers(preparation, store)
        if preparation.starts_from_teacher:
            start = start_from_teacher(self.trainer, preparation)
            if start.leakage is not None:
                raise ValueError(f"{start.leakage} {fix}")
            files += start.files
        if not preparation.needs_teacher:
            taught = "starts from its teacher" if preparation.starts_from_teacher else "needs no teacher"
            unknown = unchecked(preparation, files)
            return f"{self.trainer_name} {taught}{stored}{'' if unknown is None else f'; {unknown}'}"
        with contextlib.redirect_stdout(io.StringIO()):
            attached = attach_teacher(self.trainer, preparation)
        if attached.leakage is not None:
            raise ValueError(f"{attached.leakage} {fix}")
        found = "the teacher was found and fits"
        if attached.teacher.stages is not None and attached.stages:
            widths = list(attached.teacher.stages.widths)
            found += f": {len(attached.stages)} stages shared, widths {widths}"
        unknown = unchecked(preparation, [*files, *attached.files])
        return found if unknown is None else f"{found}; {unknown}"

    def _soft_labels_without_leak(self, store: SoftLabelStore) -> str:
        """Say which soft labels would not leak, with the command that makes them."""
        from nnunet_kd.training.sources import soft_labels_command

        if store.manifest.get("source", {}).get("folds") == [
            self.fold
        ]:  # its own teacher learnt from leaking soft labels
            return OTHER_TEACHER
        name = f"fold_{self.fold}"
        command = soft_labels_command(self.experiment)
        return (
            f"Fix: {command} --teacher -f {self.fold} --name {name}, and in the plans "
            f'"nnunet_kd": {{"method": {{"store": "{name}"}}}}'
        )
