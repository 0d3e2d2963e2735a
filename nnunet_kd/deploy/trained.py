"""Read a finished training from ``nnUNet_results`` for export, and record its provenance."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.nnunet.checkpoint import TRUST_MODEL, mirroring_axes, read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import read_settings, recorded_leakage
from nnunet_kd.nnunet.trust.architectures import load_network
from nnunet_kd.storage.integrity import file_digest

FINAL = "checkpoint_final.pth"
PACKAGES = ("nnunet_kd", "nnunetv2", "torch")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: one results folder and the folds to export.

    Attributes:
        folder: The folder ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
        experiment: The plans, configuration and ``dataset.json`` of the model.
        trainer: The name of the trainer class.
        checkpoints: The checkpoint file of each fold.
        weights: The ``network_weights`` of each fold, those of the plain student.
        mirroring: The axes that the training mirrored, for test-time augmentation; ``None`` without mirroring.
        trust: Allow any network that can be imported, of any size.
    """

    folder: Path
    experiment: Experiment
    trainer: str
    checkpoints: Mapping[str, Path]
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    mirroring: tuple[int, ...] | None
    trust: bool = False

    @property
    def dataset(self) -> str:
        """The name of the data set, ``DatasetXXX_Name``."""
        return str(self.experiment.plans["dataset_name"])

    @property
    def architecture(self) -> str:
        """The class of the network with its module."""
        plans = PlansManager(self.experiment.plans)
        return str(plans.get_configuration(self.experiment.configuration).network_arch_class_name)

    @property
    def network_name(self) -> str:
        """The class of the network without its module."""
        return self.architecture.rsplit(".", 1)[-1]

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose segmentations it needs as the second stage of a cascade, else ``None``."""
        plans = PlansManager(self.experiment.plans)
        stage: str | None = plans.get_configuration(self.experiment.configuration).previous_stage_name
        return stage

    @property
    def is_stock(self) -> bool:
        """Whether stock nnU-Net can build the network."""
        return self.architecture.split(".")[0] != __name__.split(".")[0]

    @property
    def has_onnx_form(self) -> bool:
        """Whether ONNX can express the network and the ONNX predictor can run it."""
        return self.previous_stage is None and getattr(pydoc.locate(self.architecture), "has_onnx_form", True)

    def other_way(self) -> str:
        """Return a sentence that names another way to share the model, with the command."""
        trainer, plans, configuration = self.folder.name.split("__")
        checkpoint = next(iter(self.checkpoints.values())).name
        chosen = f"-d {self.folder.parent.name} -tr {trainer} -p {plans} -c {configuration} -f {' '.join(self.weights)}"
        chosen += "" if checkpoint == FINAL else f" -chk {checkpoint}"
        if self.is_stock:
            return f"Export it for stock nnU-Net: nnunet_kd export nnunet {chosen} -o student.zip"
        if self.has_onnx_form:
            return f"Export it as ONNX: nnunet_kd export onnx {chosen} -o student_onnx"
        return (
            "Share it with a machine that has this package, and run nnunet_kd install there: "
            f"nnUNetv2_export_model_to_zip {chosen} -o student.zip"
        )

    def network(self, fold: str, trainer: str | None = None) -> nn.Module:
        """Build the network of a fold, in evaluation mode and without deep supervision.

        Args:
            fold: A key of ``weights``.
            trainer: The trainer class that builds the network; by default the model's own.

        Raises:
            ValueError: If the trainer builds a different network or none.
        """
        network = load_network(
            lambda: build_network(find_trainer(trainer or self.trainer), self.experiment),
            self.weights[fold],
            self.checkpoints[fold],
            self.trust,
        )
        return network.eval().requires_grad_(False)


def read_trained(folder: Path, folds: Sequence[str], checkpoint: str = FINAL, trust: bool = False) -> TrainedModel:
    """Read and check the results of a training.

    Args:
        folder: The results folder.
        folds: The folds to read, numbers or ``"all"``.
        checkpoint: The name of the checkpoint file in each fold's folder.
        trust: Unpickle anything in the checkpoints and build any network that the plans name, which runs their code.

    Raises:
        FileNotFoundError: If the folder, a fold or a checkpoint is missing.
        ValueError: If a checkpoint cannot be read, does not belong to the plans beside it, or could run code.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no trained model in {folder}")
    experiment = Experiment.of_results(folder, trust)
    for name in (experiment.plans["dataset_name"], folder.name, *folds):
        if not name or Path(name).name != name:
            raise ValueError(f"{name!r} in {folder} is not a valid folder name")
    files: dict[str, Path] = {}
    weights: dict[str, Any] = {}
    mirroring: tuple[int, ...] | None = None
    trainer = ""
    for fold in folds:
        path = folder / f"fold_{fold}" / checkpoint
        if not path.is_file():
            have = ", ".join(sorted(str(entry.relative_to(folder)) for entry in folder.glob("fold_*/*.pth")))
            raise FileNotFoundError(f"there is no {path}, only {have or 'no checkpoint at all'}")
        content = read_checkpoint(path, trust, TRUST_MODEL, experiment.configuration)
        axes = mirroring_axes(content, path)
        if files and (content["trainer_name"] != trainer or mirroring != axes):
            raise ValueError(f"{path} was trained with another trainer or other mirroring than fold {folds[0]}")
        trainer, mirroring = content["trainer_name"], axes
        files[str(fold)], weights[str(fold)] = path, content["network_weights"]
    model = TrainedModel(folder, experiment, trainer, files, weights, mirroring, trust)
    for fold in files:
        for name, tensor in model.network(fold).state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"the weights in {files[fold]} are not finite: {name}")
    return model


def provenance(model: TrainedModel, licence: str | None) -> dict[str, Any]:
    """Record the origin of a model: its teacher and method, its validation scores, and the versions of packages.

    Args:
        model: The model.
        licence: The licence under which the model is shared.
    """
    distilled = _distillation(model)
    network = model.network(next(iter(model.weights)))
    return {
        "dataset": model.dataset,
        "configuration": model.experiment.configuration,
        "trainer": model.trainer,
        "plans": model.experiment.plans["plans_name"],
        "folds": list(model.checkpoints),
        **distilled,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "validation": {fold: _validation(path.parent) for fold, path in model.checkpoints.items()},
        "leakage": recorded_leakage(model.experiment.plans),
        "checkpoint_sha256": {fold: file_digest(path) for fold, path in model.checkpoints.items()},
        "versions": {package: version(package) for package in PACKAGES},
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": licence,
    }


def _distillation(model: TrainedModel) -> dict[str, Any]:
    """Return the terms and teachers of a training; they are ``None`` if its trainer is not of this package."""
    from nnunet_kd.training.preparation import prepare
    from nnunet_kd.training.trainer import DistillationTrainer

    kind = find_trainer(model.trainer)
    if not issubclass(kind, DistillationTrainer):
        return {"method": None, "teacher": None}
    preparation = prepare(kind, model.experiment, _fold(next(iter(model.checkpoints))))
    teachers = read_settings(model.experiment.plans).teachers if preparation.uses_teacher else []
    return {
        "method": [str(term) for term in preparation.terms],
        "initial_weights": preparation.settings.training.initial_weights,
        "teacher": [{key: value for key, value in asdict(one).items() if key != "trust_checkpoint"} for one in teachers]
        or None,
    }


def _fold(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _validation(fold: Path) -> dict[str, Any] | None:
    """Return nnU-Net's scores on the validation cases of a fold, or ``None`` if it has not computed them."""
    path = fold / "validation" / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    try:
        return {
            "mean Dice": summary["foreground_mean"]["Dice"],
            "Dice": {label: scores["Dice"] for label, scores in summary["mean"].items()},
            "cases": len(summary["metric_per_case"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a summary by nnU-Net") from error
