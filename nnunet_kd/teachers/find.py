"""Find the teachers of a student, read their plans, and check that they fit."""

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
    """A teacher that was found: its plans have been read, its weights not yet.

    Attributes:
        deep_supervision: Whether its heads at lower resolutions were trained.
        leakage: Why it may have seen the student's validation cases, as far as its own files and existing splits say.
        fold: The teacher's fold.
        kept_back: The cases it was validated on, and so not trained on; ``None``: its validation has not ended.
        precision: ``"bfloat16"``, or ``None``: as the student's.
    """

    experiment: Experiment
    checkpoint: Path
    deep_supervision: bool
    trust_checkpoint: bool
    leakage: str | None
    fold: int | str
    kept_back: frozenset[str] | None
    precision: str | None = None


def find_teachers(settings: Sequence[TeacherSettings], student: Experiment, fold: int | str) -> list[TeacherFiles]:
    """Locate the teachers of one student fold and check that all see the same images and labels.

    Returns:
        One entry per teacher and fold.

    Raises:
        FileNotFoundError: If folder, fold or checkpoint are missing, with the command that makes them.
        ValueError: If a teacher does not fit, or its plans cannot be read, or could run code and are not trusted.
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
        folder, fix, finish = Path(settings.folder), "Name another one: nnunet_kd.teacher.folder", ""
    else:
        name = f"{settings.trainer}__{plans_name}__{configuration}"
        folder = Path(nnUNet_results.require()) / student.plans["dataset_name"] / name
        fix, finish = f"Train it: {command}", f". Finish its training: {command} --c"
    if not folder.is_dir():
        others = [] if settings.folder is not None else _other_plans(folder.parent, settings, configuration, fold)
        if others:  # plans that were copied by hand have another name than their teacher's
            fix = (
                f'There is one with the plans {", ".join(others)}: set "teacher": {{"plans": "{others[0]}"}} in the '
                f"nnunet_kd block of {student.plans['plans_name']} to learn from it, or train this one: {command}"
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
    """Names of the plans with which the same trainer has trained the same configuration and fold."""
    before, after = f"{settings.trainer}__", f"__{configuration}"
    checkpoints = results.glob(f"{escape(before)}*{escape(after)}/fold_{fold}/{escape(settings.checkpoint)}")
    return sorted(path.parents[1].name.removeprefix(before).removesuffix(after) for path in checkpoints)


def _had_deep_supervision(fold_folder: Path) -> bool:
    """What nnU-Net wrote down when the training began; its default where the file is gone."""
    notes = fold_folder / "debug.json"
    return (
        not notes.is_file() or str(read_json(notes, "the teacher's ").get("enable_deep_supervision", True)) != "False"
    )


def _source_plans(plans: dict[str, Any]) -> str:
    student = plans.get("nnunet_kd", {}).get("student", {})
    return str(student.get("source_plans") or plans["plans_name"])
