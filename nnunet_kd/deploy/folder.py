"""The folder of an ONNX model: what it holds, and that nothing of it is missing or altered.

- ``model.json``: what the predictor needs to know, where the model comes from, size and SHA-256 of every other file,
- ``plans.json``, ``dataset.json``, ``dataset_fingerprint.json``: nnU-Net's,
- ``fold_X.onnx``: a network each; their logits are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.teachers.soft_labels import file_digest
from nnunet_kd.writing import write_whole

FORMAT = 1
DESCRIPTION = "model.json"


@dataclass(frozen=True)
class ModelDescription:
    """What ``model.json`` says.

    Attributes:
        configuration: nnU-Net's.
        patch_size: Voxels, of the sliding window.
        mirroring: Axes of the patch, for test-time augmentation; ``None``: none.
        networks: Files, a network each.
        opset: Of ONNX.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``, of the weights.
        multiples: A spatial axis may have any multiple of these many voxels; ``None``: the patch's alone.
        difference: Largest absolute difference of the logits from PyTorch's, relative to their largest value.
        dice: Measured on given cases: mean Dice in fp32 and in ``precision``; ``None``: not measured.
        provenance: See :func:`nnunet_kd.deploy.trained.provenance`.
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
    """Write ``model.json`` for what the folder holds now."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        for file in sorted(folder.iterdir())
        if file.name != DESCRIPTION
    }
    content = {"format": FORMAT, **asdict(description), "files": files}
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=1))


def read_model(folder: Path) -> tuple[ModelDescription, dict[str, Any], dict[str, Any]]:
    """Description, plans and ``dataset.json`` of a model, all files checked.

    Raises:
        FileNotFoundError: Where there is no model.
        ValueError: Naming a file that is missing, altered or outside the folder.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"there is no model in {folder}: no {DESCRIPTION}. Make one: nnunet_kd export onnx")
    content = _read(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {content.get('format')!r}, this nnunet_kd reads {FORMAT}")
    try:
        files = content["files"]
        description = ModelDescription(**{key: content[key] for key in ModelDescription.__dataclass_fields__})
        _check_files(folder, files)
        for name in (*description.networks, "plans.json", "dataset.json"):
            if name not in files:
                raise ValueError(f"{path} does not list {name}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return description, _read(folder / "plans.json"), _read(folder / "dataset.json")


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, known in files.items():
        if Path(name).name != name or name in (".", ".."):
            raise ValueError(f"{folder / DESCRIPTION} names a file outside its folder: {name!r}")
        file = folder / name
        if not file.is_file():
            raise ValueError(f"the model {folder} is not whole: {name} is missing")
        if file.stat().st_size != known["bytes"] or file_digest(file) != known["sha256"]:
            raise ValueError(f"the model {folder} has been altered: {name} is not the file that was exported")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    return content
