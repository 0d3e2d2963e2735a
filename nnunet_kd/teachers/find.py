"""Find the teachers of a student, read their plans, and check that they match the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunet_kd.nnunet.cascade import FirstStage
from nnunet_kd.nnunet.checkpoint import TRUST_TEACHER
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import TeacherSettings
from nnunet_kd.teachers.compatibility import check_teacher
from nnunet_kd.teachers.leakage import (
    known_validation,
    leakage_of_split,
    second_hand_leakage,
    teacher_folds,
    validated_cases,
)


@dataclass(frozen=True)
class TeacherFiles:
    """The files of a teacher, whose plans have been read and whose weights have not.

    Attributes:
        experiment: The teacher's plans, configuration and data set.
        checkpoint: The checkpoint that holds its weights.
        deep_supervision: Whether its heads at lower resolutions were trained.
        trust_checkpoint: Whether its checkpoint and plans can run code.
        leakage: The reason why it may have seen the student's validation cases, as far as its own files and the
            existing splits tell; ``None`` if they tell nothing.
        fold: The teacher's fold.
        kept_back: The cases on which it was validated, and therefore not trained; ``None`` if its validation is not
            complete.
        precision: ``"bfloat16"``, or ``None`` for the student's precision.
        remedy: What a person who trusts an unusual checkpoint has to do, for messages.
    """

    experiment: Experiment
    checkpoint: Path
    deep_supervision: bool
    trust_checkpoint: bool
    leakage: str | None
    fold: int | str
    kept_back: frozenset[str] | None
    precision: str | None = None
    remedy: str = TRUST_TEACHER


def find_teachers(settings: Sequence[TeacherSettings], student: Experiment, fold: int | str) -> list[TeacherFiles]:
    """Find the teachers of one student fold, and check that they have the student's inputs and outputs.

    Returns:
        One entry per teacher and fold.

    Raises:
        FileNotFoundError: If the folder, the fold or the checkpoint is missing; the message names the command that
            creates it.
        ValueError: If a teacher does not match the student, or its plans cannot be read, or they could run code and
            are not trusted.
    """
    return [_find(entry, chosen, student) for entry in settings for chosen in teacher_folds(entry, fold)]


def _find(settings: TeacherSettings, fold: int | str, student: Experiment) -> TeacherFiles:
    """Find one fold of one teacher."""
    configuration = settings.configuration or student.configuration
    plans_name = settings.plans or _source_plans(student.plans)
    first = FirstStage.of(student.plans, configuration, settings.trainer, plans_name)
    train = (
        f"nnUNetv2_train {student.plans['dataset_name']} {configuration} {fold} -tr {settings.trainer} -p {plans_name}"
    )
    command = " && ".join([*(first.commands if first else []), train])
    if settings.folder is not None:
        folder, fix, finish = Path(settings.folder), "Set nnunet_kd.teacher.folder to another folder", ""
    else:
        name = f"{settings.trainer}__{plans_name}__{configuration}"
        folder = Path(nnUNet_results.require()) / student.plans["dataset_name"] / name
        fix, finish = f"Train it: {command}", f". Finish its training: {command} --c"
    if not folder.is_dir():
        others = [] if settings.folder is not None else _other_plans(folder.parent, settings, configuration, fold)
        if others:  # plans that were copied by hand have another name than their teacher's plans
            fix = (
                f'There is one with the plans {", ".join(others)}: set "teacher": {{"plans": "{others[0]}"}} in the '
                f"nnunet_kd block of {student.plans['plans_name']} to use it, or train the missing teacher: {command}"
            )
        raise FileNotFoundError(f"there is no teacher in {folder}. {fix}")
    fold_folder = folder / f"fold_{fold}"
    if not fold_folder.is_dir():
        have = ", ".join(sorted(entry.name for entry in folder.glob("fold_*"))) or "no fold"
        raise FileNotFoundError(f"the teacher in {folder} has {have}, but not fold_{fold}. {fix}")
    checkpoint = fold_folder / settings.checkpoint
    if not checkpoint.is_file():
        have = ", ".join(sorted(entry.name for entry in fold_folder.glob("*.pth"))) or "no checkpoint"
        raise FileNotFoundError(f"the teacher has {have} in {fold_folder}, but not {settings.checkpoint}{finish}")
    path = folder / "plans.json"
    teacher = Experiment.open(path, configuration, "the teacher's ", settings.trust_checkpoint, TRUST_TEACHER)
    check_teacher(teacher, student, path)
    kept_back = validated_cases(fold_folder)
    leaks = second_hand_leakage(teacher.plans, student.plans, fold) or leakage_of_split(
        kept_back, known_validation(student.plans["dataset_name"], fold), fold
    )
    deep_supervision = _had_deep_supervision(fold_folder)
    return TeacherFiles(
        teacher, checkpoint, deep_supervision, settings.trust_checkpoint, leaks, fold, kept_back, settings.precision
    )


def _other_plans(results: Path, settings: TeacherSettings, configuration: str, fold: int | str) -> list[str]:
    """Return the names of other plans with which the same trainer has trained the configuration and fold."""
    before, after = f"{settings.trainer}__", f"__{configuration}"
    checkpoints = results.glob(f"{escape(before)}*{escape(after)}/fold_{fold}/{escape(settings.checkpoint)}")
    return sorted(path.parents[1].name.removeprefix(before).removesuffix(after) for path in checkpoints)


def _had_deep_supervision(fold_folder: Path) -> bool:
    """Return whether nnU-Net recorded deep supervision when the training began; true if the record is missing."""
    notes = fold_folder / "debug.json"
    return (
        not notes.is_file() or str(read_json(notes, "the teacher's ").get("enable_deep_supervision", True)) != "False"
    )


def _source_plans(plans: dict[str, Any]) -> str:
    student = plans.get("nnunet_kd", {}).get("student", {})
    return str(student.get("source_plans") or plans["plans_name"])
