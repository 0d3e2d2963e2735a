"""Open zip files of exported models, and check the models and ensembles in them before stock nnU-Net can run them."""

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

_DATASET = "Dataset[^/]*"  # like nnU-Net, take any name with this prefix for a data set
# The files that nnU-Net's own export adds if ensembles were evaluated.
_ENSEMBLES = rf"{_DATASET}/(ensembles/[^/]+/[^/]+|inference_information\.(json|txt))"


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip file, of which nothing is unpacked yet.

    Raises:
        ValueError: If it is not a zip file.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a zip file, or it is damaged") from error


def models_in(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """List the folders of the models in an archive; any other entry must belong to nnU-Net's ensembles.

    Raises:
        ValueError: As from :func:`nnunet_kd.nnunet.trust.archives.check_entries`, or if it is not an exported model.
    """
    check_entries(archive, path)
    models = []
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename).parts
        if re.match(rf"{_DATASET}/[^/]+?__[^/]+?__[^/]+/", entry.filename) and parts[1].count("__") == 2:
            models.append(f"{parts[0]}/{parts[1]}")
        elif not entry.filename.endswith("/") and not re.fullmatch(_ENSEMBLES, entry.filename):
            raise ValueError(f"{path} is not an exported model: it holds {entry.filename[:200]!r}")
    if not models:
        raise ValueError(f"{path} is not an exported model: it is empty")
    return list(dict.fromkeys(models))


def of_ensembles(folder: Path) -> list[Path]:
    """List the ensembles of an unpacked archive and the records of how they predict, relative to its folder."""
    found = [*folder.glob("Dataset*/ensembles/*"), *folder.glob("Dataset*/inference_information.*")]
    return sorted(path.relative_to(folder) for path in found)


def check_model(folder: Path) -> None:
    """Refuse a model whose files could make stock nnU-Net run code.

    Raises:
        ValueError: If a file could; the message names it.
        FileNotFoundError: If the plans of the model are missing.
    """
    experiment = Experiment.of_results(folder)
    for file in sorted(folder.rglob("*.pth")):
        content = read_checkpoint(file, remedy=TRUST_MODEL, configuration=experiment.configuration)
        try:
            trainer = find_trainer(content["trainer_name"])
        except ValueError:  # nnU-Net cannot find it either, unless it is installed later
            continue
        load_network(partial(build_network, trainer, experiment), content["network_weights"], file)
    check_postprocessing(folder)


def check_postprocessing(folder: Path) -> None:
    """Refuse pickles in a folder that hold more than nnU-Net's postprocessing, without running what they name.

    Raises:
        ValueError: If there is such a pickle; the message names it.
    """
    for file in sorted(folder.rglob("*.pkl")):
        if not is_postprocessing(file):
            raise ValueError(
                f"{file} holds more than nnU-Net's postprocessing, and loading it could run code. {TRUST_MODEL}"
            )
