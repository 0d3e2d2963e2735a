"""Run a study: train, predict, evaluate, measure and report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.rows import write_rows
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.checkpoint import TRUST_MODEL, read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, find_trainer
from nnunet_kd.nnunet.planning import network_in_words
from nnunet_kd.nnunet.reading import read_plans
from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE, read_settings, recorded_leakage
from nnunet_kd.study.costs import study_costs
from nnunet_kd.study.engines import Engine, InTurn
from nnunet_kd.study.missing_teachers import missing_teachers
from nnunet_kd.study.pictures import draw_cases
from nnunet_kd.study.report import Report, write_report
from nnunet_kd.study.runs import TEACHER, Run
from nnunet_kd.study.study import Study
from nnunet_kd.study.validation import cuts_slices, evaluate_cases, references
from nnunet_kd.teachers.find import TeacherFiles, find_teachers
from nnunet_kd.teachers.teacher import load_plain
from nnunet_kd.training.record import changes, record_of, records


def compare_methods(
    study: Study,
    runs: Sequence[Run],
    tolerance: float,
    workers: int,
    trust: bool = False,
    engine: Engine | None = None,
    train_teachers: bool = False,
) -> list[str]:
    """Check and run a whole study, and return one sentence per failed training.

    Args:
        study: The study.
        runs: The trainings of the study.
        tolerance: The tolerance of the NSD in mm.
        workers: The number of processes for the evaluation.
        trust: Allow existing results to hold code.
        engine: What carries out the trainings; by default one after the other.
        train_teachers: Whether to train missing teachers first.

    Raises:
        ValueError: If settings or teachers do not fit, or existing results could run code; nothing is trained then.
        RuntimeError: If the baseline could not be trained, so that there is nothing to compare with.
        BusyError: If another comparison is running in the study's folder, or another process is training a run.
    """
    engine = engine or InTurn(study.commands)
    needed = check_trainers(study, runs)
    missing = missing_teachers(study, runs) if train_teachers else {}
    if missing:
        with study.alone():
            study.folds.write()
            failed = engine.train(list({one.log: one for some in missing.values() for one in some}.values()))
        if failed:
            raise RuntimeError(" ".join(failed))
    teachers = study_teachers(study, runs, needed)
    check_results(study, runs, trust)
    with study.alone():
        prepare_study(study, runs, teachers)
        failed = engine.train([study.training(run) for run in runs])
        return _report(study, runs, teachers, failed, tolerance, workers, trust)


def check_study(study: Study, runs: Sequence[Run], trust: bool, train_teachers: bool) -> None:
    """Check what :func:`compare_methods` checks before it trains, as far as teachers exist.

    Raises:
        ValueError: If the study would be refused.
    """
    needed = check_trainers(study, runs)
    teachers = {} if train_teachers and missing_teachers(study, runs) else study_teachers(study, runs, needed)
    check_results(study, runs, trust)
    _check_cases(study, runs, teachers)


def prepare_study(study: Study, runs: Sequence[Run], teachers: Mapping[int, TeacherFiles]) -> None:
    """Write folds and plans after the last checks, so that every training can start.

    Raises:
        ValueError: If a case or a fold does not fit.
    """
    study.folds.write()
    _check_cases(study, runs, teachers)
    study.write_plans(runs)


def _report(
    study: Study,
    runs: Sequence[Run],
    teachers: Mapping[int, TeacherFiles],
    failed: list[str],
    tolerance: float,
    workers: int,
    trust: bool,
) -> list[str]:
    """Evaluate, measure and report what is trained; return ``failed``."""
    baseline = runs[0].method
    done = [run for run in runs if study.is_trained(run)]
    complete = [m for m in _methods(runs) if all(study.is_trained(run) for run in runs if run.method == m)]
    if baseline not in complete:
        raise RuntimeError(f"the baseline {baseline} is not trained: {' '.join(failed)}")
    done = [run for run in done if run.method in complete]

    warnings = [*_leaks(study, done), *failed]
    rows = evaluate_cases(study, done, teachers, tolerance, workers, warnings.append)
    by_slice = cuts_slices(study, done[0].fold)
    slices = evaluate_cases(study, done, teachers, tolerance, workers, lambda _: None, True) if by_slice else []
    costs = study_costs(study, done, teachers, trust)
    methods = [TEACHER, *complete]
    report = Report(
        title=f"{study.dataset}, {study.configuration}: {', '.join(complete)}",
        facts=_facts(study, runs, tolerance),
        warnings=warnings,
        rows=sorted(rows, key=lambda row: methods.index(row.method)),
        baseline=baseline,
        teacher=TEACHER if teachers else None,
        costs=costs,
        curves=_curves(study, done, trust),
        pictures=draw_cases(study, done, rows, baseline),
        slices=sorted(slices, key=lambda row: methods.index(row.method)),
    )
    written = [*write_rows(report.rows, study.out), *write_report(report, study.out)]
    written += write_rows(report.slices, study.out, "slices") if slices else []
    print("\n" + (study.out / "report.md").read_text())
    print("wrote " + ", ".join(str(path) for path in written))
    return failed


def check_results(study: Study, runs: Sequence[Run], trust: bool) -> None:
    """Check the results that exist before the study trains.

    Raises:
        ValueError: If they hold code, which stock nnU-Net would run when it predicts, or were trained with settings
            that have changed since.
        BusyError: If another process is training them.
    """
    for run in runs:
        study.check_idle(run)
        path = study.last_checkpoint(run)
        if path is None:
            continue
        if study.is_trained(run) and not trust:
            Experiment.of_results(study.folder_of(run))
        own = read_checkpoint(path, trust, TRUST_MODEL, study.configuration).get(BLOCK)
        _check_records(study, run, records(own) if isinstance(own, dict) else [])


def _check_records(study: Study, run: Run, before: Sequence[Mapping[str, Any]]) -> None:
    """Check that a finished or stopped training had the settings it would have now, including its trainer's defaults.

    Trainings with stock trainers or earlier versions of this package have no records and are not checked.
    """
    preparation = study.prepared(run) if before else None
    if preparation is None:
        return
    now = record_of(preparation)
    for number, record in enumerate(before, 1):
        changed = changes(now, record)
        if not changed:
            continue
        verb = "trained" if study.is_trained(run) and number == len(before) else "begun"
        raise ValueError(
            f"{study.folder_of(run)} was {verb} with other settings than {run.method} has now: {changed}. Remove it, "
            "or give plans of another name with -p"
        )


def _check_cases(study: Study, runs: Sequence[Run], teachers: Mapping[int, TeacherFiles]) -> None:
    """Check that every fold has its images and labels, and is the same as for existing trainings.

    Raises:
        ValueError: If a fold does not exist or has changed, a case belongs to two folds or lacks a file, or a
            reference is not a segmentation.
    """
    if not study.folds.path.is_file():
        return  # nnU-Net will say that nothing is preprocessed
    folds = sorted({run.fold for run in runs})
    fold_of: dict[str, int] = {}
    for fold in folds:
        for case in study.folds.cases_of(fold):
            if fold_of.setdefault(case, fold) != fold:
                raise ValueError(
                    f"{case} is a validation case of folds {fold_of[case]} and {fold}: compare one fold at a time"
                )
    reader = PlansManager(study.plans).image_reader_writer_class
    for fold in folds:
        study.images_of(fold)
        for path in sorted(references(study, fold).glob(f"*{study.dataset_json['file_ending']}")):
            read_segmentation(reader, path.resolve())
        if fold in teachers:
            study.check_validated(teachers[fold].checkpoint.parents[1], fold)
    for run in runs:
        study.check_validated(study.folder_of(run), run.fold)


def _leaks(study: Study, runs: Sequence[Run]) -> list[str]:
    """Return the notes in the results about teachers that have seen validation cases, each note once."""
    notes = []
    for run in runs:
        plans = read_plans(study.folder_of(run) / "plans.json")
        notes.append(recorded_leakage(plans).get(str(run.fold)))
    return list(dict.fromkeys(note for note in notes if note is not None))


def _methods(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.method for run in runs))


def check_trainers(study: Study, runs: Sequence[Run]) -> bool:
    """Check that all runs train the network that their rows ask for, and return whether any of them needs a teacher."""
    from nnunet_kd.training.sources import attach_soft_labels

    needed = False
    networks: dict[str, Any] = {}
    for run in runs:
        try:
            trainer = find_trainer(run.trainer)
        except ValueError as error:
            raise ValueError(f"{error} for the method {run.method}") from None
        try:
            preparation = study.prepared(run)
        except ValueError:
            continue  # its training will fail with this message without stopping the others
        plans = study.plans_of(run)
        if preparation is not None:
            needed |= preparation.uses_teacher
            if not study.is_trained(run):  # soft labels do not depend on the seed, and only these plans exist
                given = Experiment(study.given_plans(run), study.configuration, study.dataset_json)
                attach_soft_labels(trainer, replace(preparation, student=given))
            plans = preparation.student.plans
        if run.network.differs:
            continue  # the row asks for another network
        networks[run.method] = PlansManager(plans).get_configuration(study.configuration).configuration["architecture"]
    first = next(iter(networks), "")
    for method, network in networks.items():
        if network != networks[first]:
            raise ValueError(
                f"{first} and {method} would train different networks ({network_in_words(networks[first])}; "
                f"{network_in_words(network)}): write the plans of one student with nnunet_kd plan -d {study.dataset} "
                "-r FACTOR, and give them with -p"
            )
    return needed


def study_teachers(study: Study, runs: Sequence[Run], needed: bool) -> dict[int, TeacherFiles]:
    """Return the teacher of each fold; the result is empty if any fold has several teachers or that of another fold.

    It is also empty if no method needs a teacher and one cannot be loaded or trusted, or if the teacher has other
    inputs or outputs than the students, which stock commands cannot compare.
    """
    settings = read_settings(study.plans).teachers
    found = {}
    for fold in sorted({run.fold for run in runs}):
        student = Experiment(study.plans, study.configuration, study.dataset_json)
        try:
            files = find_teachers(settings, student, fold, beside=False)
            if any(teacher.adaptation is not None for teacher in files):
                return {}
            for teacher in files:  # because stock commands will run it
                load_plain(teacher)
        except (FileNotFoundError, ValueError):
            if needed:
                raise
            return {}
        if len(files) != 1 or files[0].checkpoint.parent.name != f"fold_{fold}":
            return {}
        found[fold] = files[0]
    return found


def _curves(study: Study, runs: Sequence[Run], trust: bool) -> dict[str, dict[str, list[float]]]:
    """Return the logged terms of one run per method, that of the first fold and seed."""
    curves: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.method in curves:
            continue
        checkpoint = read_checkpoint(study.folder_of(run) / f"fold_{run.fold}" / "checkpoint_final.pth", trust)
        logged = checkpoint["logging"]
        known = {"ema_fg_dice", "dice_per_class_or_region", "lrs", "epoch_start_timestamps", "epoch_end_timestamps"}
        curves[run.method] = {name: [float(v) for v in values] for name, values in logged.items() if name not in known}
    return curves


def _facts(study: Study, runs: Sequence[Run], tolerance: float) -> dict[str, str]:
    from importlib.metadata import version

    training = study.schedule_of(next((run for run in runs if "training" not in run.settings), runs[0]))
    schedule = {key: getattr(training, key) or usual for key, usual in SCHEDULE.items()}
    folds = sorted({run.fold for run in runs})
    seeds = [run.seed for run in runs if run.method == runs[0].method and run.fold == folds[0]]
    rows = {run.method: run for run in runs if run.settings or run.network.differs}
    return {
        "Data": f"{study.dataset}, {study.configuration}, plans {study.plans['plans_name']}",
        "Cases": f"validation cases of fold {', '.join(map(str, folds))}; no student has seen them",
        "Schedule": f"{schedule['num_epochs']} epochs of {schedule['num_iterations_per_epoch']} iterations, "
        f"initial learning rate {schedule['initial_lr']:g}, "
        f"seed {', '.join(str(training.seed if seed is None else seed) for seed in seeds)}",
        **{
            name: f"{run.trainer} with {json.dumps({**run.network.described(), **run.settings})}"
            for name, run in rows.items()
        },
        "NSD": f"tolerance {tolerance:g} mm",
        "Cost": "equal networks are measured once, and all networks take turns on each case",
        "Versions": ", ".join(f"{package} {version(package)}" for package in ("nnunet_kd", "nnunetv2", "torch")),
    }
