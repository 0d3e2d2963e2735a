"""The cost of a study's networks, measured once and kept with the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import CASES, Measured, Model, measure_models
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.integrity import text_digest
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.runs import TEACHER, Run
from nnunet_kd.study.study import Study
from nnunet_kd.study.trainings import FINAL
from nnunet_kd.teachers.find import TeacherFiles


def study_costs(
    study: Study, runs: Sequence[Run], teachers: Mapping[int, TeacherFiles], trust: bool
) -> dict[str, Measured]:
    """Measure one model per method on cases of the first fold, and return the cost of each method.

    The costs are kept in ``costs.json`` while networks, cases and device remain the same. If one changes, all networks
    are measured again, so that figures in one table come from the same run.
    """
    fold = runs[0].fold
    models = {}
    if fold in teachers:
        files = teachers[fold]
        models[TEACHER] = Model(files.checkpoint, files.experiment.configuration, files.trust_checkpoint)
    for run in runs:
        if run.fold == fold and run.method not in models:
            checkpoint = study.folder_of(run) / f"fold_{fold}" / FINAL
            models[run.method] = Model(checkpoint, study.configuration, trust)
    cases = study.folds.cases_of(fold)[:CASES]
    wanted = {
        name: {"network": text_digest(model.network), "cases": cases, "device": study.device}
        for name, model in models.items()
    }
    path = study.out / "costs.json"
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    measured = {json.dumps(entry.get("of")): entry for entry in known.values() if isinstance(entry, dict)}
    if any(json.dumps(of) not in measured for of in wanted.values()):
        study.commands.say(f"measuring {', '.join(models)}")
        found = measure_models(models, study.images_of(fold), study.device)
        measured = {json.dumps(wanted[name]): asdict(cost) for name, cost in found.items()}
    entries = {name: {**measured[json.dumps(of)], "of": of} for name, of in wanted.items()}
    if entries != known:
        write_whole(path, json.dumps(entries, indent=1))
    return {name: _measured(entry) for name, entry in entries.items()}


def _measured(entry: Mapping[str, Any]) -> Measured:
    values = {key: value for key, value in entry.items() if key != "of"}
    return Measured(**{**values, "network": Cost(**values["network"])})
