"""Check that a teacher has the same inputs and outputs as its student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.reading import channel_names, plans_errors


def check_teacher(teacher: Experiment, student: Experiment, path: Path) -> None:
    """Refuse a teacher that was trained on other inputs or for other outputs than the student.

    Args:
        teacher: The teacher's experiment, from :meth:`~nnunet_kd.nnunet.experiment.Experiment.open`.
        student: The student's experiment.
        path: The file from which the teacher's plans were read, for messages.

    Raises:
        ValueError: If the two differ; the message says in one sentence what differs.
    """
    if student.configuration not in student.plans["configurations"]:
        raise ValueError(
            f"the student's plans {student.plans.get('plans_name')} have no configuration "
            f"{student.configuration}, only {', '.join(student.plans['configurations'])}"
        )
    with plans_errors(path):
        theirs = _facts(teacher)
    ours = _facts(student)
    for fact, mine in ours.items():
        if not _agree(theirs[fact], mine):
            raise ValueError(
                f"the teacher does not fit the student: its {fact} is {theirs[fact]}, the student's {mine}"
            )


def _facts(experiment: Experiment) -> dict[str, Any]:
    plans, dataset = experiment.plans, experiment.dataset_json
    configuration = PlansManager(plans).get_configuration(experiment.configuration).configuration
    channels = list(channel_names(dataset).values())
    schemes = configuration["normalization_schemes"]
    facts = {
        "number of input channels": len(channels),
        "list of input channels": [str(channel).lower() for channel in channels],
        # The order of the regions is the order of the network's output channels.
        "label list": list(dataset["labels"].items()) if "regions_class_order" in dataset else dataset["labels"],
        "order of regions": dataset.get("regions_class_order"),
        "number of spatial axes": len(configuration["patch_size"]),
        "spacing (mm)": [float(spacing) for spacing in configuration["spacing"]],
        "intensity normalisation": list(schemes),
        "normalisation inside the mask": list(configuration["use_mask_for_norm"]),
        "axis order": list(plans["transpose_forward"]),
        "previous cascade stage": configuration.get("previous_stage"),
    }
    # CT intensities are scaled by statistics of the data set, which the plans contain; MRI intensities by those of each
    # case.
    statistics = PlansManager(plans).foreground_intensity_properties_per_channel
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            facts[f"intensity statistics of channel {channel}"] = [
                statistics[str(channel)][key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")
            ]
    return facts


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(entry, float) for entry in a + b):
        return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))
    return bool(a == b)
