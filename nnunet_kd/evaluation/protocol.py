"""The protocol by which the segmentations of a data set are evaluated: structures, labels, tolerances and reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Structures = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Evaluation:
    """The structures that are evaluated, and how their files are read.

    Attributes:
        structures: The label values of each structure; a region has several.
        ignore_label: The label value in the reference whose voxels are not evaluated.
        values: All label values that can occur.
        file_ending: The file ending of the segmentations.
        reader: nnU-Net's class that reads the segmentations.
        tolerances: The tolerance of each structure's NSD in mm, or in voxels if ``scoring`` is ``"transunet"``.
        scoring: ``"mm"``, or ``"transunet"`` for the rules of :mod:`nnunet_kd.evaluation.transunet`.
        slice_axis: The axis of the volumes, in the order of the reader, along which every slice is evaluated as an
            image of its own; ``None`` to evaluate volumes.
    """

    structures: Structures
    ignore_label: int | None
    values: tuple[int, ...]
    file_ending: str
    reader: type
    tolerances: dict[str, float]
    scoring: Literal["mm", "transunet"] = "mm"
    slice_axis: int | None = None


def read_evaluation(
    dataset_json: Mapping[str, Any],
    plans: Mapping[str, Any] | None,
    example_file: Path,
    tolerance: float = 1.0,
    tolerances: Mapping[str, float] | None = None,
) -> Evaluation:
    """Derive the evaluation protocol from the description of a data set.

    Args:
        dataset_json: The content of nnU-Net's ``dataset.json``.
        plans: nnU-Net's plans, which name the reader; with ``None``, the file ending determines the reader.
        example_file: Any of the segmentations.
        tolerance: The tolerance of the NSD in mm.
        tolerances: Other tolerances by structure.

    Raises:
        ValueError: If a tolerance is for an unknown structure, or the plans name no reader.
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
            raise ValueError(f"there is a tolerance for {name!r}, but the structures are {', '.join(structures)}")
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


def slice_axis(plans: Mapping[str, Any] | None) -> int:
    """Return the axis of an image, as its reader gives it, along which nnU-Net's 2-D networks cut slices.

    Args:
        plans: nnU-Net's plans; without them, it is the first axis.

    Raises:
        ValueError: If the plans have no order of axes.
    """
    if plans is None:
        return 0
    order = plans.get("transpose_forward")
    if not isinstance(order, list) or not order or not all(isinstance(axis, int) for axis in order):
        raise ValueError("the plans have no transpose_forward, which says along which axis slices are cut")
    return int(order[0])
