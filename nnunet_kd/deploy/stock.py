"""Export a student as a model of stock nnU-Net, which predicts without this package, and install such a model."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.deploy.trained import TrainedModel, provenance
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import BLOCK
from nnunet_kd.nnunet.trust.archives import extract
from nnunet_kd.nnunet.trust.exported import check_model, check_postprocessing, models_in, of_ensembles, open_archive
from nnunet_kd.storage.writing import check_writable, flush_folder, replacing, scratch_folder

STOCK = nnUNetTrainer.__name__


def stock_plans_name(model: TrainedModel) -> str:
    """Return the name of the exported plans, with the method, so that the model is not installed over its teacher."""
    return f"{model.experiment.plans['plans_name']}_{model.trainer.removeprefix(STOCK) or 'exported'}"


def export_stock(model: TrainedModel, path: Path, plans_name: str | None = None, licence: str | None = None) -> str:
    """Write a zip file for ``nnUNetv2_install_pretrained_model_from_zip``.

    It holds the student's plans, its weights under the name of the stock trainer, and ``provenance.json``, but no
    optimizer state.

    Args:
        model: The trained student.
        path: The zip file to write; it is complete or absent, and replaces an older export of the same model.
        plans_name: The name of the exported plans; by default that of :func:`stock_plans_name`.
        licence: The licence to note in the provenance.

    Returns:
        The folder that it will be installed to, relative to ``nnUNet_results``.

    Raises:
        NotImplementedError: If stock nnU-Net does not have the network.
        ValueError: If the name is not valid, or the stock trainer builds a different network.
        FileExistsError: If the file holds something else than an export of this model.
    """
    if not model.is_stock:
        raise NotImplementedError(
            f"{model.network_name} is a network of this package, which stock nnU-Net cannot build. {model.other_way()}"
        )
    name = plans_name or stock_plans_name(model)
    if re.fullmatch(r"[\w.-]*\w", name) is None or "__" in name:
        raise ValueError(f"the name of plans can have letters, digits, '_', '-' and '.', but no '__', got {name!r}")
    for fold in model.weights:
        try:
            model.network(fold, trainer=STOCK)
        except ValueError as error:
            raise ValueError(f"{STOCK} builds another network from these plans than {model.trainer}") from error

    plans = {key: value for key, value in model.experiment.plans.items() if key != BLOCK}
    plans["plans_name"] = name
    folder = f"{model.dataset}/{STOCK}__{name}__{model.experiment.configuration}"
    if path.is_file() and _models_of(path) != [folder]:
        raise FileExistsError(f"{path} is there and holds another model: remove it, or give another path with -o")
    fingerprint = model.folder / "dataset_fingerprint.json"
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in (
            ("plans.json", plans),
            ("dataset.json", model.experiment.dataset_json),
            ("provenance.json", provenance(model, licence)),
        ):
            archive.writestr(f"{folder}/{entry}", json.dumps(content, indent=1))
        if fingerprint.is_file():
            archive.writestr(f"{folder}/{fingerprint.name}", json.dumps(read_json(fingerprint), indent=1))
        for fold in model.weights:
            archive.writestr(f"{folder}/fold_{fold}/checkpoint_final.pth", _checkpoint(model, fold, plans))
    return folder


def _models_of(path: Path) -> list[str]:
    """Return the models in an exported file, or an empty list if it is no such file."""
    try:
        with open_archive(path) as archive:
            return models_in(archive, path)
    except (OSError, ValueError):
        return []


def _checkpoint(model: TrainedModel, fold: str, plans: dict[str, Any]) -> bytes:
    """Return a checkpoint with what nnU-Net's predictor reads, without the state to resume a training."""
    content = {
        "network_weights": dict(model.weights[fold]),
        "trainer_name": STOCK,
        "init_args": {
            "plans": plans,
            "configuration": model.experiment.configuration,
            "fold": int(fold) if fold.isdecimal() else fold,
            "dataset_json": model.experiment.dataset_json,
        },
        "inference_allowed_mirroring_axes": model.mirroring,
        "optimizer_state": None,
        "grad_scaler_state": None,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def install_stock(path: Path, results: Path, trust: bool = False) -> list[str]:
    """Unpack a model that this package or nnU-Net exported into ``nnUNet_results``.

    Unlike nnU-Net's command, this function replaces nothing, leaves nothing behind if it fails, and refuses code that
    stock nnU-Net would run: checkpoints that hold more than weights and numbers, and networks from other packages. It
    also installs the records of ensembles that nnU-Net exports, unless there are records of the same name.

    Args:
        path: The zip file.
        results: The folder ``nnUNet_results``.
        trust: Install the model even if nnU-Net would run its code.

    Returns:
        The folders of the models, relative to ``results``.

    Raises:
        FileExistsError: If a model of that name is installed.
        UnwritableError: If its folder cannot be written to.
        ValueError: If the file is not an exported model, is damaged, would write outside its folders, or could run
            code.
    """
    with open_archive(path) as archive:
        models = models_in(archive, path)
        for model in models:
            if (results / model).exists():
                raise FileExistsError(
                    f"{results / model} already exists: remove it, or export the model under another name"
                )
            check_writable(results / model)
        with scratch_folder(results / models[0].replace("/", "_")) as unpacked:
            extract(archive, path, unpacked)
            if not trust:
                try:
                    for model in models:
                        check_model(unpacked / model)
                    check_postprocessing(unpacked)
                except (ValueError, FileNotFoundError) as error:
                    raise ValueError(str(error).replace(str(unpacked), str(path))) from error
            flush_folder(unpacked)
            for model in models:
                (results / model).parent.mkdir(exist_ok=True)
                (unpacked / model).rename(results / model)
            for other in of_ensembles(unpacked):
                if not (results / other).exists():
                    (results / other).parent.mkdir(exist_ok=True)
                    (unpacked / other).rename(results / other)
    return models
