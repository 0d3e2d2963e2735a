"""Raw images and labels of training cases, in ``imagesTr`` and ``labelsTr`` or wherever ``dataset.json`` lists them.

nnU-Net supports both. An optional entry ``dataset`` of ``dataset.json`` maps every case to
``{"images": [...], "label": ...}``. These paths are absolute or relative to the folder of the raw data set, and can
contain environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.images import images_by_case, in_order
from nnunet_kd.nnunet.reading import channel_names

LISTED = "dataset"  # the entry of dataset.json that lists the cases


def lists_cases(dataset_json: Mapping[str, Any]) -> bool:
    """Return whether ``dataset.json`` lists the files of every case."""
    return LISTED in dataset_json


def training_images(raw: Path, dataset_json: Mapping[str, Any], cases: Iterable[str]) -> dict[str, list[Path]]:
    """Return the image files of training cases, one per channel or one that holds all channels.

    Args:
        raw: The folder of the data set in ``nnUNet_raw``.
        dataset_json: The content of nnU-Net's ``dataset.json``.
        cases: The cases whose files are returned.

    Raises:
        ValueError: If the images of a case are missing, or an entry is one that nnU-Net could not read either.
    """
    channels = len(channel_names(dataset_json))
    if not lists_cases(dataset_json):
        source, ending = raw / "imagesTr", dataset_json["file_ending"]
        there = images_by_case(source, ending) if source.is_dir() else {}
        return in_order({case: there.get(case, {}) for case in cases}, channels, source, ending)
    found = {case: _entry(dataset_json, case)[0] for case in cases}
    for case, names in found.items():
        if len(names) not in (1, channels):
            raise ValueError(
                f"case {case}: dataset.json lists {len(names)} images, but one per channel ({channels}) are expected, "
                "or one that holds all channels"
            )
    return {case: [_path(raw, name) for name in names] for case, names in found.items()}


def training_labels(raw: Path, dataset_json: Mapping[str, Any], cases: Iterable[str] | None = None) -> dict[str, Path]:
    """Return the reference segmentations of training cases, without checking that the files exist.

    Args:
        raw: The folder of the data set in ``nnUNet_raw``.
        dataset_json: The content of nnU-Net's ``dataset.json``.
        cases: The cases whose files are returned; by default all that ``dataset.json`` lists.

    Raises:
        ValueError: If ``dataset.json`` lists other cases but not this one, or an entry is one that nnU-Net could not
            read either.
    """
    if not lists_cases(dataset_json):
        return {case: raw / "labelsTr" / f"{case}{dataset_json['file_ending']}" for case in cases or ()}
    return {
        case: _path(raw, _entry(dataset_json, case)[1]) for case in (_listed(dataset_json) if cases is None else cases)
    }


def _listed(dataset_json: Mapping[str, Any]) -> Mapping[str, Any]:
    listed = dataset_json[LISTED]
    if not isinstance(listed, Mapping):
        raise ValueError(f'"{LISTED}" in dataset.json must be an object, one entry per case, got {str(listed)[:60]!r}')
    return listed


def _entry(dataset_json: Mapping[str, Any], case: str) -> tuple[list[str], str]:
    """Return the images and the label that ``dataset.json`` lists for a case."""
    listed = _listed(dataset_json)
    if case not in listed:
        raise ValueError(f'case {case}: dataset.json lists {len(listed)} cases under "{LISTED}", but not this one')
    if Path(case).name != case:
        raise ValueError(f'"{LISTED}" in dataset.json names a case {case[:200]!r}, which is not a valid file name')
    entry = listed[case]
    images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(images, list) or not isinstance(label, str) or not all(isinstance(one, str) for one in images):
        raise ValueError(
            f'case {case}: dataset.json must list {{"images": [FILE, ...], "label": FILE}}, got {str(entry)[:200]}'
        )
    return images, label


def _path(raw: Path, name: str) -> Path:
    return Path(os.path.abspath(raw / os.path.expandvars(name)))
