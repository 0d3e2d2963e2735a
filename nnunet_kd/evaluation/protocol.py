"""What is evaluated in the segmentations of a data set: structures, labels that count, tolerances, and their reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Structures = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how files are read.

    Attributes:
        structures: Name -> label values; several where it is a region.
        ignore_label: Voxels the reference marks with this do not count.
        values: All label values that may occur.
        file_ending: Of the segmentations.
        reader: nnU-Net's class that reads them.
        tolerances: Structure -> tolerance of its NSD in mm.
    """

    structures: Structures
    ignore_label: int | None
    values: tuple[int, ...]
    file_ending: str
    reader: type
    tolerances: dict[str, float]


def read_evaluation(
    dataset_json: Mapping[str, Any],
    plans: Mapping[str, Any] | None,
    example_file: Path,
    tolerance: float = 1.0,
    tolerances: Mapping[str, float] | None = None,
) -> Evaluation:
    """What a data set's description asks for.

    Args:
        dataset_json: nnU-Net's ``dataset.json``.
        plans: nnU-Net's plans, for the reader; found by the file ending if left out.
        example_file: Any of the segmentations.
        tolerance: Of the NSD, in mm.
        tolerances: Structure -> another tolerance.

    Raises:
        ValueError: For a tolerance of a structure that is not there, or plans without a reader.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = dict(dataset_json["labels"])
    ignore = labels.pop("ignore", None)
    structures = {}
    values = {0}
    for name, value in labels.items():
        listed = tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)
        values.update(listed)
        if listed != (0,):
            structures[name] = listed
    by_name = dict(tolerances or {})
    for name in by_name:
        if name not in structures:
            raise ValueError(f"there is no structure {name!r} to have a tolerance: {', '.join(structures)}")
    if plans is not None:
        if not isinstance(plans.get("image_reader_writer"), str):
            raise ValueError("the plans name no image_reader_writer")
        reader = PlansManager(dict(plans)).image_reader_writer_class
    else:
        reader = determine_reader_writer_from_dataset_json(dict(dataset_json), str(example_file), verbose=False)
    return Evaluation(
        structures,
        None if ignore is None else int(ignore),
        tuple(sorted(values)),
        dataset_json["file_ending"],
        reader,
        {name: float(by_name.get(name, tolerance)) for name in structures},
    )
