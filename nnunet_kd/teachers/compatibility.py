"""Check that a teacher has the same inputs and outputs as its student, or inputs and outputs that can be mapped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.reading import channel_names, plans_errors
from nnunet_kd.nnunet.settings import BLOCK, TeacherSettings
from nnunet_kd.teachers.adaptation import Adaptation

# Weights can only be taken from a teacher that agrees in these.
OF_THE_NETWORK = ("number of spatial axes", "axis order", "previous cascade stage")


def check_teacher(teacher: Experiment, student: Experiment, path: Path, settings: TeacherSettings) -> None:
    """Refuse a teacher that was trained on other inputs or for other outputs than the student.

    Args:
        teacher: The teacher's experiment, from :meth:`~nnunet_kd.nnunet.experiment.Experiment.open`.
        student: The student's experiment.
        path: The file from which the teacher's plans were read, for messages.
        settings: The settings that name the teacher.

    Raises:
        ValueError: If the two differ; the message says in one sentence what differs.
    """
    theirs, ours = _both(teacher, student, path)
    for fact, mine in ours.items():
        if not _agree(theirs[fact], mine):
            raise _misfit(fact, theirs, ours)
    if settings.channels is None and settings.label_map is None:
        return
    found = Adaptation.between(teacher, student, settings)
    if not (found.channels.is_identity and found.labels.is_identity):
        key = "label_map" if found.channels.is_identity else "channels"
        raise ValueError(
            f"{BLOCK}.teacher.{key} is for a teacher that gives initial weights or stored soft labels, but this one "
            "runs beside the student, which has the same channels and labels: remove the key"
        )


def adaptation(teacher: Experiment, student: Experiment, path: Path, settings: TeacherSettings) -> Adaptation | None:
    """Return the differences between a student and a teacher that gives its initial weights; ``None`` without any.

    Args:
        teacher: As for :func:`check_teacher`.
        student: As for :func:`check_teacher`.
        path: As for :func:`check_teacher`.
        settings: As for :func:`check_teacher`.

    Raises:
        ValueError: If a difference does not allow the student to take the teacher's weights; the message says in one
            sentence what differs.
    """
    theirs, ours = _both(teacher, student, path)
    different = [fact for fact, mine in ours.items() if not _agree(theirs[fact], mine)]
    for fact in different:
        cascade = ours["previous cascade stage"] is not None  # the labels of the first stage are input channels too
        if fact in OF_THE_NETWORK or cascade:
            raise _misfit(fact, theirs, ours)
    if not different and settings.channels is None and settings.label_map is None:
        return None
    found = Adaptation.between(teacher, student, settings)
    return None if not different and found.channels.is_identity and found.labels.is_identity else found


def _misfit(fact: str, theirs: dict[str, Any], ours: dict[str, Any]) -> ValueError:
    return ValueError(f"the teacher does not fit the student: its {fact} is {theirs[fact]}, the student's {ours[fact]}")


def _both(teacher: Experiment, student: Experiment, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the facts about the inputs and outputs of both.

    Raises:
        ValueError: If the student lacks the configuration, or nnU-Net cannot use the teacher's plans.
    """
    if student.configuration not in student.plans["configurations"]:
        raise ValueError(
            f"the student's plans {student.plans.get('plans_name')} have no configuration "
            f"{student.configuration}, only {', '.join(student.plans['configurations'])}"
        )
    with plans_errors(path):
        theirs = _facts(teacher)
    return theirs, _facts(student)


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
