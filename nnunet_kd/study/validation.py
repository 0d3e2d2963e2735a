"""The validation cases of a study: references and all segmentations side by side, their metrics and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.folders import Evaluation, Row, evaluate_folders, read_evaluation
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.evaluation.summary import Scores
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.nnunet.raw_cases import training_images, training_labels
from nnunet_kd.study.runs import TEACHER, Run, folder_of
from nnunet_kd.study.study import Study
from nnunet_kd.teachers.find import TeacherFiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def evaluate_cases(
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
        reference = references(study, fold)
        evaluation = _evaluation(study, next(reference.iterdir()), tolerance)
        for row in evaluate_folders(reference, _linked(study, folders, fold), evaluation, workers, progress, warn):
            trained = by_key.get(row.method)
            rows.append(row if trained is None else replace(row, method=trained.method, seed=trained.seed))
    return rows


def _key(run: Run) -> str:
    return f"{run.method} seed {run.seed}"


def _evaluation(study: Study, example: Path, tolerance: float) -> Evaluation:
    return read_evaluation(study.dataset_json, study.plans, example, tolerance)


def references(study: Study, fold: int) -> Path:
    """A folder of links to the labels of the fold's validation cases."""
    labels = training_labels(study.raw, study.dataset_json, study.cases_of(fold))
    return _links(study.out / "references" / f"fold_{fold}", labels, study)


def _linked(study: Study, folders: Mapping[str, Path], fold: int) -> dict[str, Path]:
    """The same for predictions, whose folders may hold more than segmentations."""
    ending = study.dataset_json["file_ending"]
    cases = study.cases_of(fold)
    return {
        name: _links(segmentations(study, name, fold), {case: folder / f"{case}{ending}" for case in cases}, study)
        for name, folder in folders.items()
    }


def segmentations(study: Study, name: str, fold: int) -> Path:
    """A folder of links to the predictions of the fold's validation cases.

    Args:
        study: Has predicted them.
        name: Of the method and seed.
        fold: The fold.
    """
    return study.out / "segmentations" / f"{folder_of(name)}_fold_{fold}"


def _links(folder: Path, files: Mapping[str, Path], study: Study) -> Path:
    ending = study.dataset_json["file_ending"]
    return link_cases(folder, {case: [path] for case, path in files.items()}, lambda case, _: f"{case}{ending}")


def draw_cases(study: Study, runs: Sequence[Run], rows: Sequence[Row], baseline: str) -> dict[str, Figure]:
    """Worst, median and best case of the last method by its Dice minus the baseline's."""
    from nnunet_kd.evaluation.pictures import Slice, draw_disagreement, worst_slice

    scores = Scores(rows)
    shown = runs[-1].method
    difference = scores.of(shown) - scores.of(baseline) if shown != baseline else scores.of(shown)
    order = [int(i) for i in np.argsort(difference) if np.isfinite(difference[i])]
    if not order:
        return {}
    several = any(len(seeds) > 1 for seeds in scores.seeds.values())
    of_seeds = ", mean of the seeds, of which the first is shown" if several else ""
    evaluation = _evaluation(study, next(references(study, runs[0].fold).iterdir()), 1.0)
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
    reader = PlansManager(study.plans).image_reader_writer_class
    ending = study.dataset_json["file_ending"]
    fold = next(run.fold for run in runs if case in study.cases_of(run.fold))
    first = training_images(study.raw, study.dataset_json, [case])[case][0]
    image, properties = reader().read_images([str(first)])
    reference, _ = read_segmentation(reader, training_labels(study.raw, study.dataset_json, [case])[case])
    labels = {}
    keys = {TEACHER: TEACHER} if with_teacher else {}
    for run in runs:
        if run.fold == fold:
            keys.setdefault(run.method, _key(run))
    for method, key in keys.items():
        labels[method], _ = read_segmentation(reader, segmentations(study, key, fold) / f"{case}{ending}")
    return image[0], reference, labels, [float(width) for width in properties["spacing"]]
