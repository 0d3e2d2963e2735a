"""Carry out a study: train, predict, evaluate, measure, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.folders import Evaluation, Row, evaluate_folders, read_evaluation, write_rows
from nnunet_kd.evaluation.measure import Measured, measure
from nnunet_kd.evaluation.report import Report, write_report
from nnunet_kd.evaluation.runs import TEACHER, Run, folder_of
from nnunet_kd.evaluation.study import FINAL, Study
from nnunet_kd.evaluation.summary import Scores
from nnunet_kd.images import link_cases
from nnunet_kd.labels import whole_labels
from nnunet_kd.planning import network_in_words
from nnunet_kd.reading import read_json, read_plans
from nnunet_kd.settings import BLOCK, SCHEDULE, read_settings, recorded_leakage
from nnunet_kd.teachers.architecture import check_networks
from nnunet_kd.teachers.checkpoint import TRUST_MODEL, read_checkpoint
from nnunet_kd.teachers.nnunet import Experiment, TeacherFiles, find_teachers, find_trainer, load_plain
from nnunet_kd.training.history import records
from nnunet_kd.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare_methods(
    study: Study, runs: Sequence[Run], tolerance: float, workers: int, trust: bool = False
) -> list[str]:
    """All of it; returns a sentence a training that failed.

    Args:
        study: What is compared.
        runs: Its trainings.
        tolerance: Of the NSD, in mm.
        workers: Processes of the evaluation.
        trust: Results that are there already may hold code.

    Raises:
        ValueError: For settings or teachers that do not fit, or results that could run code, before anything is
            trained.
        RuntimeError: Where the baseline could not be trained: there is nothing to compare with.
    """
    teachers = _find_teachers(study, runs, needed=_check_trainers(study, runs))
    _check_results(study, runs, trust)
    study.write_splits()
    _check_cases(study, runs, teachers)
    study.write_plans(runs)
    failed = _train(study, runs)
    baseline = runs[0].method
    done = [run for run in runs if study.is_trained(run)]
    whole = [m for m in _methods(runs) if all(study.is_trained(run) for run in runs if run.method == m)]
    if baseline not in whole:
        raise RuntimeError(f"the baseline {baseline} is not trained: {' '.join(failed)}")
    done = [run for run in done if run.method in whole]

    warnings = [*_leaks(study, done), *failed]
    rows = _evaluate(study, done, teachers, tolerance, workers, warnings.append)
    costs = _measure(study, done, teachers)
    methods = [TEACHER, *whole]
    report = Report(
        title=f"{study.dataset}, {study.configuration}: {', '.join(whole)}",
        facts=_facts(study, runs, tolerance),
        warnings=warnings,
        rows=sorted(rows, key=lambda row: methods.index(row.method)),
        baseline=baseline,
        teacher=TEACHER if teachers else None,
        costs=costs,
        curves=_curves(study, done, trust),
        pictures=_pictures(study, done, rows, baseline),
    )
    written = [*write_rows(report.rows, study.out), *write_report(report, study.out)]
    print("\n" + (study.out / "report.md").read_text())
    print("wrote " + ", ".join(str(path) for path in written))
    return failed


def _check_results(study: Study, runs: Sequence[Run], trust: bool) -> None:
    """Results that are there already.

    Raises:
        ValueError: Where they could run code, which stock nnU-Net runs when it predicts, or were trained with other
            settings than they would be now.
    """
    for run in runs:
        path = study.last_checkpoint(run)
        if path is None:
            continue
        plans = study.folder_of(run) / "plans.json"
        if study.is_trained(run) and not trust:
            check_networks(read_plans(plans), plans, TRUST_MODEL, study.configuration)
        own = read_checkpoint(path, trust, TRUST_MODEL, study.configuration).get(BLOCK)
        _check_records(study, run, records(own) if isinstance(own, dict) else [])


def _check_records(study: Study, run: Run, before: Sequence[Mapping[str, Any]]) -> None:
    """That a training had, as far as it is, the settings it would have now, defaults of its trainer included.

    There are no records of a stock training, and of one of an earlier version.
    """
    preparation = study.prepared(run) if before else None
    if preparation is None:
        return
    for number, changes in enumerate(map(preparation.changes, before), 1):
        if not changes:
            continue
        verb = "trained" if study.is_trained(run) and number == len(before) else "begun"
        raise ValueError(
            f"{study.folder_of(run)} was {verb} with other settings than {run.method} has now: {changes}. Remove it, "
            "or give -p plans of another name"
        )


def _check_cases(study: Study, runs: Sequence[Run], teachers: Mapping[int, TeacherFiles]) -> None:
    """That every fold is there, with images and labels, as it was for what is trained already.

    Raises:
        ValueError: For a fold nnU-Net's splits do not have or that has changed, a case of two folds, or one without
            one of its files.
    """
    if not study.splits.is_file():
        return  # nnU-Net will say that nothing is preprocessed
    folds = sorted({run.fold for run in runs})
    fold_of: dict[str, int] = {}
    for fold in folds:
        for case in study.cases_of(fold):
            if fold_of.setdefault(case, fold) != fold:
                raise ValueError(
                    f"{case} is a validation case of folds {fold_of[case]} and {fold}: compare them one at a time"
                )
    for fold in folds:
        study.images_of(fold)
        _references(study, fold)
        if fold in teachers:
            study.check_validated(teachers[fold].checkpoint.parents[1], fold)
    for run in runs:
        study.check_validated(study.folder_of(run), run.fold)


def _leaks(study: Study, runs: Sequence[Run]) -> list[str]:
    """What the results say of teachers that have seen validation cases, once each."""
    notes = []
    for run in runs:
        plans = read_plans(study.folder_of(run) / "plans.json")
        notes.append(recorded_leakage(plans).get(str(run.fold)))
    return list(dict.fromkeys(note for note in notes if note is not None))


def _methods(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.method for run in runs))


def _check_trainers(study: Study, runs: Sequence[Run]) -> bool:
    """Whether any run needs a teacher; that all train the same network."""
    from nnunet_kd.training.preparation import attach_soft_labels

    needed = False
    networks: dict[str, Any] = {}
    for run in runs:
        try:
            find_trainer(run.trainer)
        except ValueError as error:
            raise ValueError(f"{error} for the method {run.method}") from None
        try:
            preparation = study.prepared(run)
        except ValueError:
            continue  # its training will say so and not stop the others
        plans = study.plans_of(run)
        if preparation is not None:
            needed |= preparation.uses_teacher
            if not study.is_trained(run):  # of the same data whatever the seed; these plans are written already
                given = Experiment(study.plans, study.configuration, study.dataset_json)
                attach_soft_labels(replace(preparation, student=given))
            plans = preparation.student.plans
        networks[run.method] = PlansManager(plans).get_configuration(study.configuration).configuration["architecture"]
    first = next(iter(networks), "")
    for method, network in networks.items():
        if network != networks[first]:
            raise ValueError(
                f"{first} and {method} would train different networks ({network_in_words(networks[first])}; "
                f"{network_in_words(network)}): write plans of one student, nnunet_kd plan -d {study.dataset} -r R, "
                "and give them with -p"
            )
    return needed


def _find_teachers(study: Study, runs: Sequence[Run], needed: bool) -> dict[int, TeacherFiles]:
    """Fold -> its teacher; empty where, in any fold, several teach together or another fold's does.

    A teacher that cannot be loaded, or is not trusted, is none where no method needs one.
    """
    settings = read_settings(study.plans).teachers
    found = {}
    for fold in sorted({run.fold for run in runs}):
        student = Experiment(study.plans, study.configuration, study.dataset_json)
        try:
            files = find_teachers(settings, student, fold)
            for teacher in files:  # which stock commands will run
                load_plain(teacher)
        except (FileNotFoundError, ValueError):
            if needed:
                raise
            return {}
        if len(files) != 1 or files[0].checkpoint.parent.name != f"fold_{fold}":
            return {}
        found[fold] = files[0]
    return found


def _train(study: Study, runs: Sequence[Run]) -> list[str]:
    failed = []
    for number, run in enumerate(runs, 1):
        state = "done already" if study.is_trained(run) else "training"
        study.commands.say(f"{number} of {len(runs)}: {run.method}, fold {run.fold}, plans {run.plans}: {state}")
        try:
            study.train(run)
        except RuntimeError as error:
            failed.append(f"{run.method} (fold {run.fold}, plans {run.plans}) failed: {error}.")
            study.commands.say(failed[-1])
    return failed


def _evaluate(
    study: Study,
    runs: Sequence[Run],
    teachers: Mapping[int, TeacherFiles],
    tolerance: float,
    workers: int,
    warn: Callable[[str], None],
) -> list[Row]:
    """Of every run and case."""
    from tqdm import tqdm

    rows: list[Row] = []
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda work, count: tqdm(  # noqa: E731
        work, total=count, unit="case", desc="evaluating"
    )
    for fold in sorted({run.fold for run in runs}):
        folders = {}
        by_key = {_key(run): run for run in runs if run.fold == fold}
        if fold in teachers:
            path = teachers[fold].checkpoint
            folders[TEACHER] = study.predict(path.parents[1], fold, path.name)
        for key, run in by_key.items():
            folders[key] = study.predict(study.folder_of(run), fold)
        reference = _references(study, fold)
        evaluation = _evaluation(study, next(reference.iterdir()), tolerance)
        for row in evaluate_folders(reference, _linked(study, folders, fold), evaluation, workers, progress, warn):
            trained = by_key.get(row.method)
            rows.append(row if trained is None else replace(row, method=trained.method, seed=trained.seed))
    return rows


def _key(run: Run) -> str:
    return f"{run.method} seed {run.seed}"


def _evaluation(study: Study, example: Path, tolerance: float) -> Evaluation:
    return read_evaluation(study.dataset_json, study.plans, example, tolerance)


def _references(study: Study, fold: int) -> Path:
    """A folder of links to the labels of the fold's validation cases."""
    return _links(study.out / "references" / f"fold_{fold}", study.raw / "labelsTr", study, fold)


def _linked(study: Study, folders: Mapping[str, Path], fold: int) -> dict[str, Path]:
    """The same for predictions, whose folders may hold more than segmentations."""
    return {name: _links(_segmentations(study, name, fold), folder, study, fold) for name, folder in folders.items()}


def _segmentations(study: Study, name: str, fold: int) -> Path:
    return study.out / "segmentations" / f"{folder_of(name)}_fold_{fold}"


def _links(folder: Path, source: Path, study: Study, fold: int) -> Path:
    ending = study.dataset_json["file_ending"]
    return link_cases(folder, {case: [source / f"{case}{ending}"] for case in study.cases_of(fold)})


def _measure(study: Study, runs: Sequence[Run], teachers: Mapping[int, TeacherFiles]) -> dict[str, Measured]:
    """One model a method, on the first fold; kept in ``costs.json`` for as long as the models are the same."""
    fold = runs[0].fold
    models = {}
    if fold in teachers:
        models[TEACHER] = teachers[fold].checkpoint, teachers[fold].experiment.configuration
    for run in runs:
        if run.fold == fold:
            models.setdefault(run.method, (study.folder_of(run) / f"fold_{fold}" / FINAL, study.configuration))
    path = study.out / "costs.json"
    known = read_json(path) if path.is_file() else {}
    of = {
        name: {"checkpoint": str(checkpoint), "written": checkpoint.stat().st_mtime, "device": study.device}
        for name, (checkpoint, _) in models.items()
    }
    if any(name not in known or known[name].get("of") != of[name] for name in models):
        known = {}
        for name, (checkpoint, configuration) in models.items():
            study.commands.say(f"measuring {name}")
            cost = measure(checkpoint, configuration, study.images_of(fold), study.device)
            known[name] = {**asdict(cost), "of": of[name]}
        write_whole(path, json.dumps(known, indent=1))
    costs = {}
    for name in models:
        entry = {key: value for key, value in known[name].items() if key != "of"}
        costs[name] = Measured(**{**entry, "network": Cost(**entry["network"])})
    return costs


def _curves(study: Study, runs: Sequence[Run], trust: bool) -> dict[str, dict[str, list[float]]]:
    """Logged terms of one run a method: the first fold and seed."""
    curves: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.method in curves:
            continue
        checkpoint = read_checkpoint(study.folder_of(run) / f"fold_{run.fold}" / "checkpoint_final.pth", trust)
        logged = checkpoint["logging"]
        known = {"ema_fg_dice", "dice_per_class_or_region", "lrs", "epoch_start_timestamps", "epoch_end_timestamps"}
        curves[run.method] = {name: [float(v) for v in values] for name, values in logged.items() if name not in known}
    return curves


def _pictures(study: Study, runs: Sequence[Run], rows: Sequence[Row], baseline: str) -> dict[str, Figure]:
    """Worst, median and best case of the last method by its Dice minus the baseline's."""
    from nnunet_kd.evaluation.pictures import Slice, draw_disagreement, worst_slice

    scores = Scores(rows)
    methods = _methods(runs)
    shown = methods[-1]
    difference = scores.of(shown) - scores.of(baseline) if shown != baseline else scores.of(shown)
    order = [int(i) for i in np.argsort(difference) if np.isfinite(difference[i])]
    if not order:
        return {}
    several = any(len(seeds) > 1 for seeds in scores.seeds.values())
    of_seeds = ", mean of the seeds, of which the first is shown" if several else ""
    evaluation = _evaluation(study, next(_references(study, runs[0].fold).iterdir()), 1.0)
    cases = {}
    for title, index in (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])):
        case = scores.cases[index]
        image, reference, labels, spacing = _read_case(study, runs, case, with_teacher=TEACHER in scores.methods)
        if evaluation.ignore_label is not None:  # nobody is wrong where nothing is known
            known = reference != evaluation.ignore_label
            reference, labels = reference * known, {name: found * known for name, found in labels.items()}
        axis = int(np.argmax(spacing))
        where = worst_slice(reference, labels, axis)
        height, width = (length for number, length in enumerate(spacing) if number != axis)
        caption = f"{title}: {case}, {100 * difference[index]:+.1f} Dice{of_seeds}"
        cases[caption] = Slice(
            image.take(where, axis),
            reference.take(where, axis),
            {name: segmentation.take(where, axis) for name, segmentation in labels.items()},
            height / width,
        )
    what = f"{shown} minus {baseline}" if shown != baseline else shown
    return {f"Cases by Dice of {what}": draw_disagreement(cases, evaluation.structures)}


def _read_case(
    study: Study, runs: Sequence[Run], case: str, with_teacher: bool
) -> tuple[Any, Any, dict[str, Any], list[float]]:
    """First image, reference and segmentations ``(z, y, x)`` of one case, and the voxel size."""
    reader = PlansManager(study.plans).image_reader_writer_class()
    ending = study.dataset_json["file_ending"]
    fold = next(run.fold for run in runs if case in study.cases_of(run.fold))
    image, properties = reader.read_images([str(study.raw / "imagesTr" / f"{case}_0000{ending}")])
    reference = whole_labels(reader.read_seg(str(study.raw / "labelsTr" / f"{case}{ending}"))[0][0])
    labels = {}
    keys = {TEACHER: TEACHER} if with_teacher else {}
    for run in runs:
        if run.fold == fold:
            keys.setdefault(run.method, _key(run))
    for method, key in keys.items():
        labels[method] = reader.read_seg(str(_segmentations(study, key, fold) / f"{case}{ending}"))[0][0]
    return image[0], reference, labels, [float(width) for width in properties["spacing"]]


def _facts(study: Study, runs: Sequence[Run], tolerance: float) -> dict[str, str]:
    from importlib.metadata import version

    training = study.schedule_of(next((run for run in runs if "training" not in run.settings), runs[0]))
    schedule = {key: getattr(training, key) or usual for key, usual in SCHEDULE.items()}
    folds = sorted({run.fold for run in runs})
    seeds = [run.seed for run in runs if run.method == runs[0].method and run.fold == folds[0]]
    rows = {run.method: run for run in runs if run.settings}
    return {
        "Data": f"{study.dataset}, {study.configuration}, plans {study.plans['plans_name']}",
        "Cases": f"validation cases of fold {', '.join(map(str, folds))}; no student has seen them",
        "Schedule": f"{schedule['num_epochs']} epochs of {schedule['num_iterations_per_epoch']} iterations, "
        f"initial learning rate {schedule['initial_lr']:g}, "
        f"seed {', '.join(str(training.seed if seed is None else seed) for seed in seeds)}",
        **{name: f"{run.trainer} with {json.dumps(run.settings)}" for name, run in rows.items()},
        "NSD": f"tolerance {tolerance:g} mm",
        "Versions": ", ".join(f"{package} {version(package)}" for package in ("nnunet_kd", "nnunetv2", "torch")),
    }
