"""Evaluate the validation cases of a study: link references and segmentations, and compute metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import Evaluation, read_evaluation, slice_axis
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.nnunet.raw_cases import training_labels
from nnunet_kd.study.predictions import predict
from nnunet_kd.study.runs import TEACHER, Run, folder_of
from nnunet_kd.study.study import Study
from nnunet_kd.teachers.find import TeacherFiles


def evaluate_cases(
    study: Study,
    runs: Sequence[Run],
    teachers: Mapping[int, TeacherFiles],
    tolerance: float,
    workers: int,
    warn: Callable[[str], None],
    by_slice: bool = False,
) -> list[Row]:
    """Predict and evaluate the validation cases of every run and teacher; return one row per case and structure.

    Args:
        study: The study.
        runs: The finished trainings.
        teachers: The teacher of each fold.
        tolerance: The tolerance of the NSD in mm.
        workers: The number of processes.
        warn: A function that receives warnings.
        by_slice: Whether every slice is a case.
    """
    from tqdm import tqdm

    rows: list[Row] = []
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda work, count: tqdm(  # noqa: E731
        work, total=count, unit="case", desc="evaluating"
    )
    for fold in sorted({run.fold for run in runs}):
        folders = {}
        by_key = {key_of(run): run for run in runs if run.fold == fold}
        if fold in teachers:
            path = teachers[fold].checkpoint
            folders[TEACHER] = predict(study, path.parents[1], fold, path.name)
        for key, run in by_key.items():
            folders[key] = predict(study, study.folder_of(run), fold)
        reference = references(study, fold)
        evaluation = evaluation_of(study, next(reference.iterdir()), tolerance)
        evaluation = replace(evaluation, slice_axis=slice_axis(study.plans)) if by_slice else evaluation
        for row in evaluate_folders(reference, _linked(study, folders, fold), evaluation, workers, progress, warn):
            trained = by_key.get(row.method)
            rows.append(row if trained is None else replace(row, method=trained.method, seed=trained.seed))
    return rows


def cuts_slices(study: Study, fold: int) -> bool:
    """Return whether the study's networks are 2-D and the images of a fold have several slices."""
    manager = PlansManager(study.plans)
    if len(manager.get_configuration(study.configuration).patch_size) != 2:
        return False
    labels, _ = read_segmentation(manager.image_reader_writer_class, next(references(study, fold).iterdir()).resolve())
    return bool(labels.shape[0] > 1)


def key_of(run: Run) -> str:
    """Return the name under which the segmentations of a run are kept."""
    return f"{run.method} seed {run.seed}"


def evaluation_of(study: Study, example: Path, tolerance: float) -> Evaluation:
    """Return the structures and settings of the evaluation; ``tolerance`` is that of the NSD in mm."""
    return read_evaluation(study.dataset_json, study.plans, example, tolerance)


def references(study: Study, fold: int) -> Path:
    """Return a folder of links to the labels of a fold's validation cases."""
    labels = training_labels(study.raw, study.dataset_json, study.folds.cases_of(fold))
    return _links(study.out / "references" / f"fold_{fold}", labels, study)


def _linked(study: Study, folders: Mapping[str, Path], fold: int) -> dict[str, Path]:
    """Link the predictions of every method, because their folders can hold other files as well."""
    ending = study.dataset_json["file_ending"]
    cases = study.folds.cases_of(fold)
    return {
        name: _links(segmentations(study, name, fold), {case: folder / f"{case}{ending}" for case in cases}, study)
        for name, folder in folders.items()
    }


def segmentations(study: Study, name: str, fold: int) -> Path:
    """Return the folder of links to the predictions of a fold's validation cases.

    Args:
        study: The study that predicted them.
        name: The name of the method and seed.
        fold: The fold.
    """
    return study.out / "segmentations" / f"{folder_of(name)}_fold_{fold}"


def _links(folder: Path, files: Mapping[str, Path], study: Study) -> Path:
    ending = study.dataset_json["file_ending"]
    return link_cases(folder, {case: [path] for case, path in files.items()}, lambda case, _: f"{case}{ending}")
