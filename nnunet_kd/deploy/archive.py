"""What an exported zip file holds, looked at before anything of it is written or run."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath

from nnunet_kd.deploy.postprocessing import is_postprocessing
from nnunet_kd.nnunet.checkpoint import TRUST_MODEL, read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.nnunet.trust.architectures import check_networks, load_network
from nnunet_kd.storage.writing import DiskFullError, is_full

MOST_FILES = 10_000
# Bytes that come out for one that went in. Weights hardly compress; text, twentyfold.
MOST_COMPRESSED = 100
_LITTLE = 2**24  # bytes; below it anything may be compressed as it likes

_DATASET = "Dataset[^/]*"  # as nnU-Net: any name that begins so is a data set's
# What nnU-Net's own export adds where ensembles were evaluated.
_ENSEMBLES = rf"{_DATASET}/(ensembles/[^/]+/[^/]+|inference_information\.(json|txt))"


def models_in(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """Folders of the models in an archive. Every entry lies in one, or belongs to ensembles of nnU-Net.

    Raises:
        ValueError: For entries that would be written elsewhere or are there twice, for an archive that becomes far
            larger than it is, and for one that is no exported model.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ValueError(f"{path} is no exported model: it holds {len(entries)} files")
    models, seen = [], set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        outside = ".." in parts or PurePosixPath(entry.filename).is_absolute() or link
        if outside or re.search(r"[\\:\x00-\x1f]", entry.orig_filename):
            raise ValueError(f"{path} would write outside nnUNet_results: {entry.orig_filename[:200]!r}")
        if parts in seen:
            raise ValueError(f"{path} holds {entry.filename!r} twice")
        seen.add(parts)
        if re.match(rf"{_DATASET}/[^/]+?__[^/]+?__[^/]+/", entry.filename) and parts[1].count("__") == 2:
            models.append(f"{parts[0]}/{parts[1]}")
        elif not entry.filename.endswith("/") and not re.fullmatch(_ENSEMBLES, entry.filename):
            raise ValueError(f"{path} is no exported model: it holds {entry.filename[:200]!r}")
    models = list(dict.fromkeys(models))
    if not models:
        raise ValueError(f"{path} is no exported model: it is empty")
    size = sum(entry.file_size for entry in entries)
    if size > MOST_COMPRESSED * path.stat().st_size + _LITTLE:
        raise ValueError(f"{path} is no exported model: its files would have {size / 2**30:.1f} GiB")
    return models


def of_ensembles(folder: Path) -> list[Path]:
    """What an unpacked archive holds beside models, relative to its folder: ensembles, and how they predict."""
    found = [*folder.glob("Dataset*/ensembles/*"), *folder.glob("Dataset*/inference_information.*")]
    return sorted(path.relative_to(folder) for path in found)


def extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Unpack an archive whose entries have been checked; none becomes larger than it says.

    Raises:
        ValueError: For an archive that is damaged.
        DiskFullError: For one that is larger than the disk has room for.
    """
    size = sum(entry.file_size for entry in archive.infolist())
    if size > shutil.disk_usage(folder).free:
        raise DiskFullError(f"cannot write {folder.parent}: the disk is full, {path} needs {size / 2**30:.2g} GiB")
    try:
        archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        if is_full(error, folder):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error


def check_model(folder: Path) -> None:
    """Refuse a model of which stock nnU-Net would run more than weights.

    Raises:
        ValueError: Naming the file.
        FileNotFoundError: Where its plans are missing.
    """
    plans, dataset_json = read_plans(folder / "plans.json"), read_dataset_json(folder / "dataset.json")
    experiment = Experiment(plans, folder.name.split("__")[-1], dataset_json)
    check_networks(plans, folder / "plans.json", TRUST_MODEL, experiment.configuration)
    for file in sorted(folder.rglob("*.pth")):
        content = read_checkpoint(file, remedy=TRUST_MODEL, configuration=experiment.configuration)
        try:
            trainer = find_trainer(content["trainer_name"])
        except ValueError:  # nnU-Net will not find it either, unless it is installed later
            continue
        load_network(partial(build_network, trainer, experiment), content["network_weights"], file)
    check_postprocessing(folder)


def check_postprocessing(folder: Path) -> None:
    """That the pickles in a folder are nnU-Net's postprocessing; nothing that they name is run.

    Raises:
        ValueError: Naming the file.
    """
    for file in sorted(folder.rglob("*.pkl")):
        if not is_postprocessing(file):
            raise ValueError(
                f"{file} holds more than nnU-Net's postprocessing, and loading it could run code. {TRUST_MODEL}"
            )
