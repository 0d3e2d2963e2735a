"""The student's plans, derived from those of a teacher that was trained on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.default_network import default_network
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import is_reducible, student_plans
from nnunet_kd.nnunet.settings import BLOCK, Plans

NAME = "nnUNetPlans_distilled"


@dataclass(frozen=True)
class Student:
    """What a student is to be.

    Attributes:
        reduction: The factor that divides every width of the teacher's network.
        spacing: The voxel size in mm to which its images are resampled, ``(z, y, x)`` in the order of the image's
            axes; ``None`` for the teacher's.
        channels: The numbers of the teacher's channels that it sees; ``None`` for all.
        label_map: The teacher's structures of which each of its structures consists; ``None`` for the teacher's own.
    """

    reduction: float
    spacing: Sequence[float] | None = None
    channels: Sequence[int] | None = None
    label_map: Mapping[str, Sequence[str]] | None = None


def plans_of_student(
    teacher: Experiment,
    dataset_name: str,
    reader: str,
    student: Student,
    model: Path,
    fold: int | str,
    training: Mapping[str, Any],
    method: Mapping[str, Any],
    trust: bool = False,
) -> Plans:
    """Return plans with one configuration: the teacher's preprocessing and topology, and narrower stages.

    If the plans of the teacher name a network whose widths cannot be divided, such as a transformer, or a U-Net that
    cannot divide the patch and which the trainer has therefore replaced, the student's network is a narrower version of
    nnU-Net's default U-Net for this patch.

    Args:
        teacher: The teacher's plans, configuration and data set.
        dataset_name: The name of the student's data set.
        reader: The name of nnU-Net's class that reads its images.
        student: What the student is to be.
        model: The results folder of the teacher, from which the student's initial weights come.
        fold: The fold of the teacher from which they come.
        training: The section ``training`` of the ``nnunet_kd`` block.
        method: The section ``method`` of the ``nnunet_kd`` block.
        trust: Whether code in the teacher's files may run.

    Raises:
        ValueError: If the spacing does not fit the configuration, or the teacher's widths cannot be divided.
        NotImplementedError: If the teacher is the second stage of a cascade.
    """
    whole = PlansManager(teacher.plans)
    configuration = deepcopy(whole.get_configuration(teacher.configuration).configuration)
    if configuration.get("previous_stage"):
        raise NotImplementedError(
            f"{teacher.configuration} takes the segmentation of another model as input, and such a model cannot be "
            "distilled: give a model that sees images alone"
        )
    configuration.pop("inherits_from", None)
    configuration.pop("next_stage", None)
    configuration["data_identifier"] = f"{NAME}_{teacher.configuration}"
    patch = configuration["patch_size"]
    if not is_reducible(configuration) or any(np.mod(patch, _divisors(configuration))):
        spacing = configuration["spacing"][-len(patch) :]
        configuration["architecture"], configuration["patch_size"] = default_network(spacing, patch)
    if student.spacing is not None:
        _resample(configuration, student.spacing, whole.transpose_forward)
    plans = {**deepcopy(teacher.plans), "dataset_name": dataset_name, "image_reader_writer": reader}
    if student.channels is not None:
        _leave_out_channels(plans, configuration, student.channels)
    plans["configurations"] = {teacher.configuration: configuration}
    plans.pop(BLOCK, None)
    reduced = student_plans(plans, student.reduction, name=NAME)
    source: dict[str, Any] = {"folder": str(model), "folds": [fold] if isinstance(fold, int) else fold}
    if trust:
        source["trust_checkpoint"] = True
    if student.channels is not None:
        source["channels"] = list(student.channels)
    if student.label_map is not None:
        source["label_map"] = {name: list(listed) for name, listed in student.label_map.items()}
    reduced[BLOCK] |= {"teacher": source, "training": dict(training), "method": dict(method)}
    reduced[BLOCK]["student"]["source_plans"] = teacher.plans["plans_name"]
    return reduced


def _leave_out_channels(plans: Plans, configuration: dict[str, Any], channels: Sequence[int]) -> None:
    """Keep the normalisation of some of the teacher's channels."""
    for key in ("normalization_schemes", "use_mask_for_norm"):
        configuration[key] = [configuration[key][channel] for channel in channels]
    known = plans["foreground_intensity_properties_per_channel"]
    plans["foreground_intensity_properties_per_channel"] = {
        str(number): known[str(channel)] for number, channel in enumerate(channels)
    }


def _resample(configuration: dict[str, Any], spacing: Sequence[float], transpose: Sequence[int]) -> None:
    """Change the voxel size of a configuration, and its patch so that it covers about the same part of the body."""
    before = np.array(configuration["spacing"], float)
    if len(spacing) != len(before) or min(spacing) <= 0:
        raise ValueError(
            f"the spacing must be {len(before)} lengths in mm, as the model's "
            f"{' '.join(f'{length:g}' for length in before)}, got {' '.join(f'{length:g}' for length in spacing)}"
        )
    wanted = (
        np.array([spacing[axis] for axis in transpose], float) if len(transpose) == len(spacing) else np.array(spacing)
    )
    ratio = before / wanted
    divisors = _divisors(configuration)
    patch = np.array(configuration["patch_size"], float) * ratio
    # Two voxels per axis at the lowest scale, because nnU-Net's instance normalisation needs more than one voxel there.
    sides = [max(2, round(side / divisor)) * divisor for side, divisor in zip(patch, divisors, strict=True)]
    configuration["patch_size"] = sides
    configuration["spacing"] = [float(length) for length in wanted]
    if "median_image_size_in_voxels" in configuration:
        sizes = np.array(configuration["median_image_size_in_voxels"], float) * ratio
        configuration["median_image_size_in_voxels"] = [float(size) for size in sizes]


def _divisors(configuration: Mapping[str, Any]) -> list[int]:
    """Return the numbers that must divide the sides of the patch, the products of the network's strides."""
    axes = len(configuration["patch_size"])
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    each = [[stride] * axes if isinstance(stride, int) else [int(one) for one in stride] for stride in strides]
    return [prod(stride) for stride in zip(*each, strict=True)]
