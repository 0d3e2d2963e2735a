"""The teachers of a study that must be trained before its students."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_kd.nnunet.settings import read_settings
from nnunet_kd.study.runs import Run
from nnunet_kd.study.study import Study
from nnunet_kd.study.trainings import Training
from nnunet_kd.teachers.leakage import teacher_folds


def missing_teachers(study: Study, runs: Sequence[Run]) -> dict[int, list[Training]]:
    """Return the trainings of the teachers that each fold of students lacks.

    Raises:
        NotImplementedError: If a missing teacher has another configuration than the students.
    """
    settings = read_settings(study.plans)
    source = (settings.student.source_plans if settings.student else None) or study.plans["plans_name"]
    missing: dict[int, list[Training]] = {}
    for fold in sorted({run.fold for run in runs}):
        for teacher in settings.teachers:
            if teacher.folder is not None:
                continue  # nobody knows how it was trained
            plans = teacher.plans or source
            for chosen in teacher_folds(teacher, fold):
                name = f"teacher {teacher.trainer} (fold {chosen}, plans {plans})"
                training = study.training_of(name, teacher.trainer, plans, chosen, None)
                if teacher.configuration not in (None, study.configuration):
                    if not (study.results / f"{teacher.trainer}__{plans}__{teacher.configuration}").is_dir():
                        raise NotImplementedError(
                            f"{name} has the configuration {teacher.configuration}: train it first"
                        )
                elif not training.is_done and not (training.fold / teacher.checkpoint).is_file():
                    missing.setdefault(fold, []).append(training)
    return missing
