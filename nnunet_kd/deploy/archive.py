"""What an exported zip file holds: its models and ensembles, checked before stock nnU-Net would run them."""

from __future__ import annotations

import re
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath

from nnunet_kd.nnunet.checkpoint import TRUST_MODEL, read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.trust.architectures import load_network
from nnunet_kd.nnunet.trust.archives import check_entries
from nnunet_kd.nnunet.trust.postprocessing import is_postprocessing

_DATASET = "Dataset[^/]*"  # as nnU-Net: any name that begins so is a data set's
# What nnU-Net's own export adds where ensembles were evaluated.
_ENSEMBLES = rf"{_DATASET}/(ensembles/[^/]+/[^/]+|inference_information\.(json|txt))"


def models_in(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """List the folders of the models in an archive, whose entries all lie in one or belong to nnU-Net's ensembles.

    Raises:
        ValueError: As :func:`nnunet_kd.nnunet.trust.archives.check_entries`, or where it is no exported model.
    """
    check_entries(archive, path)
    models = []
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename).parts
        if re.match(rf"{_DATASET}/[^/]+?__[^/]+?__[^/]+/", entry.filename) and parts[1].count("__") == 2:
            models.append(f"{parts[0]}/{parts[1]}")
        elif not entry.filename.endswith("/") and not re.fullmatch(_ENSEMBLES, entry.filename):
            raise ValueError(f"{path} is no exported model: it holds {entry.filename[:200]!r}")
    if not models:
        raise ValueError(f"{path} is no exported model: it is empty")
    return list(dict.fromkeys(models))


def of_ensembles(folder: Path) -> list[Path]:
    """List what an unpacked archive holds beside models, relative to its folder: ensembles, and how they predict."""
    found = [*folder.glob("Dataset*/ensembles/*"), *folder.glob("Dataset*/inference_information.*")]
    return sorted(path.relative_to(folder) for path in found)


def check_model(folder: Path) -> None:
    """Refuse a model of which stock nnU-Net would run more than weights.

    Raises:
        ValueError: Naming the file.
        FileNotFoundError: Where its plans are missing.
    """
    experiment = Experiment.of_results(folder)
    for file in sorted(folder.rglob("*.pth")):
        content = read_checkpoint(file, remedy=TRUST_MODEL, configuration=experiment.configuration)
        try:
            trainer = find_trainer(content["trainer_name"])
        except ValueError:  # nnU-Net will not find it either, unless it is installed later
            continue
        load_network(partial(build_network, trainer, experiment), content["network_weights"], file)
    check_postprocessing(folder)


def check_postprocessing(folder: Path) -> None:
    """Refuse pickles in a folder that are not nnU-Net's postprocessing; nothing that they name is run.

    Raises:
        ValueError: Naming the file.
    """
    for file in sorted(folder.rglob("*.pkl")):
        if not is_postprocessing(file):
            raise ValueError(
                f"{file} holds more than nnU-Net's postprocessing, and loading it could run code. {TRUST_MODEL}"
            )
