"""The folder of an ONNX model: write its description, and read it with a check that every file is intact.

- ``model.json``: the settings of the predictor, the provenance, and the size and SHA-256 of every other file,
- ``plans.json``, ``dataset.json``, ``dataset_fingerprint.json``: the files of nnU-Net,
- ``fold_X.onnx``: one network per fold, whose logits are averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from .files.integrity import file_digest
from .files.limited_json import read_limited
from .files.writing import write_whole

FORMAT = 1
DESCRIPTION = "model.json"
LARGEST_PATCH = 2**30  # voxels


@dataclass(frozen=True)
class ModelDescription:
    """The content of ``model.json``.

    Attributes:
        configuration: The nnU-Net configuration.
        patch_size: The size of the sliding window in voxels.
        mirroring: The axes of the patch that test-time augmentation mirrors; ``None`` without mirroring.
        networks: The names of the ONNX files, one per network.
        opset: The ONNX opset.
        precision: The precision of the weights: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        multiples: For each spatial axis, the number of voxels that its size must be a multiple of; ``None`` if the
            networks take the patch size only.
        difference: The largest absolute difference from PyTorch's logits, relative to their largest value.
        dice: The mean Dice in fp32 and in ``precision`` on given cases; ``None`` if it was not measured.
        provenance: The origin of the model, see :func:`nnunet_kd.deploy.trained.provenance`.
    """

    configuration: str
    patch_size: list[int]
    mirroring: list[int] | None
    networks: list[str]
    opset: int
    precision: str
    multiples: list[int] | None
    difference: float
    dice: dict[str, Any] | None
    provenance: dict[str, Any]


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write ``model.json`` for the present content of a folder."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        for file in sorted(folder.iterdir())
        if file.name != DESCRIPTION
    }
    content = {"format": FORMAT, **asdict(description), "files": files}
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=1))


def read_model(folder: Path) -> tuple[ModelDescription, dict[str, Any], dict[str, Any]]:
    """Check all files of a model, and return its description, plans and ``dataset.json``.

    Raises:
        FileNotFoundError: If there is no model in the folder.
        ValueError: If a file is missing, altered or outside the folder, or the description is wrong; the message names
            it.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        trained = folder.is_file() or (folder / "plans.json").is_file()  # a zip file or results folder of nnU-Net
        words = f"-m {quote(str(folder))} -o NEW_FOLDER" if trained else f"-d ID -tr TRAINER -o {quote(str(folder))}"
        raise FileNotFoundError(
            f"there is no model in {folder}: it has no {DESCRIPTION}. Export one: nnunet_kd export onnx {words}"
        )
    content = _read_object(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')!r}, but this version of nnunet_kd reads format {FORMAT}"
        )
    try:
        files = content["files"]
        description = ModelDescription(**{key: content[key] for key in ModelDescription.__dataclass_fields__})
        _check_numbers(description, path)
        _check_files(folder, files)
        for name in (*description.networks, "plans.json", "dataset.json"):
            if name not in files:
                raise ValueError(f"{path} does not list {name}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return description, _read_object(folder / "plans.json"), _read_object(folder / "dataset.json")


def _read_object(path: Path) -> dict[str, Any]:
    content = read_limited(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def _check_numbers(description: ModelDescription, path: Path) -> None:
    """Check the values that allocate memory or index axes before any network is read."""
    patch = description.patch_size
    sides = isinstance(patch, list) and all(isinstance(side, int) and side > 0 for side in patch)
    if not sides or len(patch) not in (2, 3) or math.prod(patch) > LARGEST_PATCH:
        raise ValueError(f"{path} is damaged: patch_size is {str(patch)[:60]}")
    axes = description.mirroring
    if axes is not None and not (isinstance(axes, list) and all(axis in range(len(patch)) for axis in axes)):
        raise ValueError(f"{path} is damaged: mirroring is {str(axes)[:60]}")
    if len(set(axes or ())) < len(axes or ()) or not description.networks:
        raise ValueError(f"{path} is damaged: an axis is mirrored twice, or there is no network")


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, known in files.items():
        if Path(name).name != name or name in (".", ".."):
            raise ValueError(f"{folder / DESCRIPTION} names a file outside its folder: {name!r}")
        file = folder / name
        if not file.is_file():
            raise ValueError(f"the model {folder} is incomplete: {name} is missing")
        if file.stat().st_size != known["bytes"] or file_digest(file) != known["sha256"]:
            raise ValueError(f"the model {folder} has been altered: {name} is not the file that was exported")
