"""Read nnU-Net's JSON files (plans, ``dataset.json`` and splits), and check that nnU-Net can use them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.error_reasons import first_line
from nnunet_kd.nnunet.trust.limited_json import read_limited

# The networks whose list arguments have one entry per stage, and by how many entries each list is shorter.
STAGED_NETWORKS = ("dynamic_network_architectures.", "nnunet_kd.networks.")
LISTS_OF_STAGES = {
    "features_per_stage": 0,
    "kernel_sizes": 0,
    "strides": 0,
    "n_conv_per_stage": 0,
    "n_blocks_per_stage": 0,
    "n_conv_per_stage_decoder": 1,
}


def read_json(path: Path, what: str = "") -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: The file.
        what: The owner of the file, for messages: ``"the teacher's "``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: See :func:`nnunet_kd.nnunet.trust.limited_json.read_limited`; also if the content is not an object.
    """
    content = read_limited(path, what)
    if not isinstance(content, dict):
        raise ValueError(f"{what}{path} is not a JSON object")
    return content


def read_plans(path: Path, what: str = "") -> dict[str, Any]:
    """Read a plans file of nnU-Net, an object with ``plans_name``, ``dataset_name`` and ``configurations``.

    Raises:
        FileNotFoundError: See :func:`read_json`.
        ValueError: See :func:`read_json`; also if one of these entries is missing or has the wrong type, or if the
            batch, the patch or the number of stages of a configuration is impossible.
    """
    plans = read_json(path, what)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(one, dict) for one in configurations.values()):
        raise ValueError(f"{what}{path} is not a plans file of nnU-Net: configurations is not an object of objects")
    for name in (plans.get("plans_name"), plans.get("dataset_name"), *configurations):
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{what}{path} is not a plans file of nnU-Net: {str(name)[:60]!r} is not a valid name")
    for name, configuration in configurations.items():
        fault = _fault_of_sizes(configuration) or _fault_of_stages(configuration)
        if fault is not None:
            raise ValueError(f"{what}{path} contains plans that nnU-Net cannot use: {fault} (configuration {name})")
    return plans


@contextmanager
def plans_errors(path: Path) -> Iterator[None]:
    """Turn any error that nnU-Net raises about unusable plans into one sentence.

    Args:
        path: The plans file, for the message.

    Raises:
        ValueError: If nnU-Net cannot use the plans; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nnU-Net warns about plans of its older versions
            yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else first_line(error)
        raise ValueError(f"{path} contains plans that nnU-Net cannot use: {what}") from error


def _fault_of_sizes(configuration: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with a configuration's batch or patch, or return ``None``; both can be inherited."""
    batch, patch = configuration.get("batch_size", 1), configuration.get("patch_size", [1, 1])
    if not _is_count(batch):
        return f"batch_size must be a whole number of at least 1, got {json.dumps(batch)[:60]}"
    if not isinstance(patch, list) or not 2 <= len(patch) <= 3 or not all(map(_is_count, patch)):
        return f"patch_size must be two or three whole numbers of at least 1, got {json.dumps(patch)[:60]}"
    return None


def _fault_of_stages(configuration: Mapping[str, Any]) -> str | None:
    """Describe which argument of a network has the wrong number of entries for its stages, or return ``None``."""
    architecture = configuration.get("architecture")
    arguments = architecture.get("arch_kwargs") if isinstance(architecture, dict) else None
    if not isinstance(architecture, dict) or not isinstance(arguments, dict):
        return None  # the plans are old, or the network is inherited
    stages = arguments.get("n_stages")
    if not str(architecture.get("network_class_name")).startswith(STAGED_NETWORKS) or not isinstance(stages, int):
        return None
    for key, fewer in LISTS_OF_STAGES.items():
        given = arguments.get(key)
        if isinstance(given, list) and len(given) != stages - fewer:
            return f"{key} must have {stages - fewer} entries, as n_stages is {stages}, got {len(given)}"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_dataset_json(path: Path, what: str = "") -> dict[str, Any]:
    """Read nnU-Net's ``dataset.json``, an object with ``labels``, ``file_ending`` and the names of the channels.

    Raises:
        FileNotFoundError: See :func:`read_json`.
        ValueError: See :func:`read_json`; also if one of these entries is missing or has the wrong type, or if nnU-Net
            refuses the labels.
    """
    content = read_json(path, what)
    for key in ("labels", "file_ending"):
        if key not in content:
            raise ValueError(f"{what}{path} has no {key!r}: it is not a dataset.json of nnU-Net")
    fault = _fault_of_description(content) or _fault_of_labels(content["labels"], content.get("regions_class_order"))
    if fault is not None:
        raise ValueError(f"{what}{path} is not a valid dataset.json of nnU-Net: {fault}")
    return content


def _fault_of_description(content: Mapping[str, Any]) -> str | None:
    """Describe the first invalid entry of a ``dataset.json``, or return ``None``."""
    if not isinstance(content["labels"], dict) or not isinstance(channel_names(content), dict | None):
        return "labels and channel_names must be objects"
    if not isinstance(content["file_ending"], str):
        return f"file_ending must be text, got {content['file_ending']!r}"
    reader = content.get("overwrite_image_reader_writer", "None")
    if not isinstance(reader, str):
        return f"overwrite_image_reader_writer must name a reader of nnU-Net or be left out, got {json.dumps(reader)}"
    for name, value in content["labels"].items():
        if value == []:
            return f"label {name!r} is an empty list"
        if name == "ignore" and value is None:  # means that there is no ignore label
            continue
        try:
            label_values(value)
        except (TypeError, ValueError):
            return f"label {name!r} must be a whole number or a list of them, got {value!r}"
    return None


def _fault_of_labels(labels: Mapping[str, Any], order: Any) -> str | None:
    """Describe why nnU-Net's label manager would refuse these labels, or return ``None`` if it accepts them."""
    background, ignore = labels.get("background"), labels.get("ignore")
    if background is None or isinstance(background, list) or int(background) != 0:
        return f"the label 'background' must be 0, got {'none' if background is None else json.dumps(background)[:60]}"
    named = {name: label_values(value) for name, value in labels.items() if name != "ignore"}
    above = max(value for values in named.values() for value in values) + 1
    if ignore is not None and (not _is_count(ignore) or ignore != above):
        return f"the label 'ignore' must be {above}, one above the highest of the others, got {json.dumps(ignore)[:60]}"
    if not any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return None
    regions = [name for name, values in named.items() if set(values) != {0}]
    if not isinstance(order, list) or not all(isinstance(one, int) for one in order) or len(order) != len(regions):
        return (
            f"regions_class_order must list a label for each of the {len(regions)} regions ({', '.join(regions)}), "
            f"got {'none' if order is None else json.dumps(order)[:60]}"
        )
    return None


def label_values(value: Any) -> list[int]:
    """Return the values of a label or region as a list; a label has one value, a region lists its labels."""
    return [int(one) for one in (value if isinstance(value, list) else [value])]


def channel_names(dataset_json: Mapping[str, Any]) -> Any:
    """Return the names of the channels by channel number, from a ``dataset.json`` of nnU-Net v2 or v1."""
    return dataset_json.get("channel_names", dataset_json.get("modality", {}))


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Read nnU-Net's ``splits_final.json``, which lists the training and validation cases of every fold.

    Raises:
        FileNotFoundError: See :func:`read_json`.
        ValueError: See :func:`read_json`; also if the file does not list folds.
    """
    splits = read_limited(path)
    if not isinstance(splits, list) or not all(isinstance(fold, dict) for fold in splits):
        raise ValueError(f"{path} does not list folds of nnU-Net")
    for fold in splits:
        for cases in (fold.get("train"), fold.get("val")):
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise ValueError(f"{path} does not list folds of nnU-Net")
            for case in cases:
                if Path(case).name != case:
                    raise ValueError(f"{path} names a case {case[:200]!r}, which is not a valid file name")
    return splits
