"""Trained models from anywhere as teachers: an exported zip file, a results folder, or a name in ``nnUNet_results``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunet_kd.nnunet.checkpoint import TRUST_MODEL, read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.trust.archives import extract
from nnunet_kd.nnunet.trust.exported import models_in, open_archive
from nnunet_kd.storage.writing import new_folder, scratch_folder
from nnunet_kd.teachers.find import TeacherFiles
from nnunet_kd.teachers.leakage import validated_cases

FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model whose plans have been read and whose weights have not.

    Attributes:
        name: The name of its folder, such as ``Dataset501_X/nnUNetTrainer__nnUNetPlans__3d_fullres``.
        folds: The files of the chosen folds.
    """

    name: str
    folds: tuple[TeacherFiles, ...]

    @property
    def experiment(self) -> Experiment:
        """Its plans, configuration and data set."""
        return self.folds[0].experiment


@contextmanager
def opened_model(
    given: str | Path,
    scratch: Path,
    folds: Sequence[str] | None = None,
    configuration: str | None = None,
    checkpoint: str = FINAL,
    trust: bool = False,
) -> Iterator[TrainedModel]:
    """Open a trained model; a zip file is unpacked into a hidden folder that is removed at the end.

    Args:
        given: A zip file by ``nnUNetv2_export_model_to_zip`` or ``nnunet_kd export``, a results folder, or the name of
            a results folder in ``nnUNet_results``.
        scratch: A path beside which a zip file is unpacked.
        folds: The folds, numbers or ``all``; ``None`` for every fold that the model has. ``["all"]`` is nnU-Net's fold
            of all cases or, if the model has none, every fold.
        configuration: The configuration to choose if there are several models.
        checkpoint: The name of the checkpoint file of every fold.
        trust: Whether the model's files may run code, as for :func:`nnunet_kd.nnunet.checkpoint.read_checkpoint` and
            :meth:`nnunet_kd.nnunet.experiment.Experiment.open`.

    Raises:
        FileNotFoundError: If there is no such model, fold or checkpoint.
        ValueError: If the zip file is not an exported model, is damaged or would write outside its folder, if there
            are several models to choose from, or if the plans cannot be read or could run code.
    """
    path = Path(given)
    if not path.is_file():
        yield _read(_folder_of(given, configuration), folds, checkpoint, trust)
        return
    with scratch_folder(scratch) as unpacked:
        try:
            yield _read(_extracted(path, unpacked, configuration), folds, checkpoint, trust)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(str(error).replace(str(unpacked), str(path))) from error


def unpack_model(path: Path, folder: Path, configuration: str | None = None) -> Path:
    """Unpack an exported zip file into a new folder, without running or trusting anything in it.

    Args:
        path: The zip file.
        folder: The folder to create, which is complete or absent.
        configuration: The configuration of the returned model if there are several models.

    Returns:
        The folder of the model below ``folder``.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: See :func:`opened_model`.
    """
    with new_folder(folder) as unfinished:
        model = _extracted(path, unfinished, configuration)
    return folder / model.relative_to(unfinished)


def _extracted(path: Path, folder: Path, configuration: str | None) -> Path:
    """Unpack a checked zip file, and return the folder of one of its models."""
    with open_archive(path) as archive:
        model = _chosen(models_in(archive, path), configuration, path)
        extract(archive, path, folder)
    return folder / model


def _folder_of(given: str | Path, configuration: str | None) -> Path:
    """Return the results folder that a path or a name in ``nnUNet_results`` means."""
    places = [Path(given), *([Path(nnUNet_results.require()) / given] if nnUNet_results.is_set() else [])]
    for folder in places:
        if (folder / "plans.json").is_file():
            return folder
        below = sorted(plans.parent.name for plans in folder.glob("*__*__*/plans.json"))
        if below:
            return folder / _chosen(below, configuration, folder)
    raise FileNotFoundError(
        f"there is no model {given}: give a zip file, a results folder, which contains plans.json, or its name in "
        "nnUNet_results, such as Dataset501_X/nnUNetTrainer__nnUNetPlans__3d_fullres"
    )


def _chosen(models: Sequence[str], configuration: str | None, path: Path) -> str:
    """Return the only model, or else the only one of a configuration."""
    fitting = [model for model in models if model.endswith(f"__{configuration}")] if len(models) > 1 else models
    if len(fitting) != 1:
        raise ValueError(
            f"{path} holds several models, {', '.join(models)}: choose one by its configuration with --model-config"
        )
    return fitting[0]


def _read(folder: Path, folds: Sequence[str] | None, checkpoint: str, trust: bool) -> TrainedModel:
    """Read the plans of a model, and find the checkpoints of its folds."""
    found = _checkpoints(folder, folds, checkpoint)
    first = read_checkpoint(next(iter(found.values())), trust, TRUST_MODEL)
    # like nnU-Net, build the configuration that the checkpoint names, whatever the folder is called
    settings = first.get("init_args")
    configuration = settings.get("configuration") if isinstance(settings, dict) else None
    if not isinstance(configuration, str):
        raise ValueError(f"{next(iter(found.values()))} does not say which configuration it belongs to")
    experiment = Experiment.open(folder / "plans.json", configuration, "the model's ", trust)
    files = [
        TeacherFiles(experiment, path, True, trust, None, fold, validated_cases(path.parent), remedy=TRUST_MODEL)
        for fold, path in found.items()
    ]
    name = f"{first['trainer_name']}__{experiment.plans['plans_name']}__{configuration}"
    return TrainedModel(f"{experiment.plans['dataset_name']}/{name}", tuple(files))


def _checkpoints(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> dict[int | str, Path]:
    """Return the checkpoint of every chosen fold."""
    there: dict[int | str, Path] = {}
    for path in folder.glob(f"fold_*/{checkpoint}"):
        fold = path.parent.name.removeprefix("fold_")
        there[int(fold) if fold.isdecimal() else fold] = path
    numbered = sorted(fold for fold in there if isinstance(fold, int))
    if folds is None or (list(folds) == ["all"] and "all" not in there):
        chosen: list[int | str] = [*numbered] or [*there]
    else:
        chosen = list(dict.fromkeys(int(fold) if fold.isdecimal() else fold for fold in folds))
    have = ", ".join(sorted(path.parent.name for path in there.values())) or f"no fold with a {checkpoint}"
    missing = [fold for fold in chosen if fold not in there]
    if missing:
        raise FileNotFoundError(f"the model in {folder} has {have}, but not fold_{missing[0]}")
    if not chosen:
        raise FileNotFoundError(f"the model in {folder} has {have}")
    return {fold: there[fold] for fold in chosen}
