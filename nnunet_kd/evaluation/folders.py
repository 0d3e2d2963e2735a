"""Evaluate folders of segmentations against one folder of references, case by case, in parallel."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.metrics import METRICS, overlap_metrics, surface_metrics
from nnunet_kd.evaluation.placement import Corners, apart, corners
from nnunet_kd.evaluation.protocol import Evaluation
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.images import is_left_over
from nnunet_kd.nnunet.labels import label_text
from nnunet_kd.storage.integrity import check_name
from nnunet_kd.storage.processes import end_with_parent

References = Path | Mapping[str, Path]  # a folder, or the file of every case


def find_cases(reference: References, predictions: Mapping[str, Path], file_ending: str) -> list[str]:
    """Cases to evaluate: all in the folder of references; of references that are listed, those with a prediction.

    Raises:
        FileNotFoundError: For a folder that is not there.
        ValueError: For an empty folder, and for a case that a folder of predictions lacks, naming it.
    """
    predicted = {name: segmentations_in(folder, file_ending).keys() for name, folder in predictions.items()}
    if isinstance(reference, Path):
        cases, where = {*segmentations_in(reference, file_ending)}, str(reference)
    else:
        cases, where = {*reference}.intersection(set().union(*predicted.values())), "the list of references"
        if not cases:
            raise ValueError(f"there is no reference for any case in {', '.join(map(str, predictions.values()))}")
    for case in cases:
        if any("\ud800" <= letter <= "\udfff" for letter in case):
            raise ValueError(f"case {case!r} in {where} has a name that is not in UTF-8")
    for name, own in predicted.items():
        missing = cases - own
        if missing:
            found = (
                f"case {min(missing)} is"
                if len(missing) == 1
                else f"case {min(missing)} and {len(missing) - 1} more are"
            )
            raise ValueError(f"{found} in {where}, but not in {predictions[name]}")
    return sorted(cases)


def segmentations_in(folder: Path, file_ending: str) -> dict[str, Path]:
    """Case -> file.

    Raises:
        FileNotFoundError: For a folder that is not there.
        ValueError: For an empty one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    check_name(folder)
    files = [path for path in folder.glob(f"*{file_ending}") if not is_left_over(path.name)]
    found = {path.name[: -len(file_ending)]: path for path in files}
    if not found:
        raise ValueError(f"no file in {folder} ends in {file_ending}")
    return found


def _say(warning: str) -> None:
    print(f"nnunet_kd: warning: {warning}", file=sys.stderr)


def evaluate_folders(
    reference: References,
    predictions: Mapping[str, Path],
    evaluation: Evaluation,
    workers: int = 2,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda work, _: work,
    warn: Callable[[str], None] = _say,
) -> list[Row]:
    """All metrics of all cases, sorted by method, case and structure as given.

    Voxels are compared as they lie in the files, as nnU-Net does.

    Args:
        reference: Folder of reference segmentations, or case -> file.
        predictions: Method -> folder.
        evaluation: What and how.
        workers: Processes.
        progress: Shows how far it is: gets the work and its length.
        warn: Gets a sentence for a folder with predictions that have no reference, which are left out, and for one
            whose images lie elsewhere in the world than the reference.

    Raises:
        ValueError: Naming the case: for a file that cannot be read, and segmentations whose shape, spacing or labels
            do not fit their reference.
    """
    ending = evaluation.file_ending
    cases = find_cases(reference, predictions, ending)
    for folder in predictions.values():
        predicted = segmentations_in(folder, ending)
        if unknown := predicted.keys() - {*cases}:
            warn(
                f"{folder}: {len(unknown)} of {len(predicted)} predictions, {min(unknown)} for one, have no reference "
                "and are left out"
            )
    truths = segmentations_in(reference, ending) if isinstance(reference, Path) else reference
    jobs = [(truths[case], predictions, case, evaluation) for case in cases]
    rows: dict[str, list[Row]] = {}
    elsewhere: dict[str, list[str]] = {}

    def keep(done: list[Row], methods: list[str]) -> None:
        case = done[0].case
        rows[case] = done
        for method in methods:
            elsewhere.setdefault(method, []).append(case)

    if workers <= 1:
        for done in progress((_evaluate_case(*job) for job in jobs), len(jobs)):
            keep(*done)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_set_up_worker) as pool:
            futures = [pool.submit(_evaluate_case, *job) for job in jobs]
            try:
                for future in progress(as_completed(futures), len(jobs)):
                    keep(*future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    for method, found in elsewhere.items():
        warn(
            f"{predictions[method]}: {len(found)} of {len(cases)} cases, {min(found)} for one, have another direction "
            "or origin than the reference; voxels are compared as they lie in the files"
        )
    order = list(predictions)
    return sorted((row for case in cases for row in rows[case]), key=lambda row: order.index(row.method))


def _set_up_worker() -> None:
    import torch

    end_with_parent()
    warnings.simplefilter("ignore", FutureWarning)  # of libraries about themselves, once a process
    torch.set_num_threads(1)


def _evaluate_case(
    reference: Path, predictions: Mapping[str, Path], case: str, evaluation: Evaluation
) -> tuple[list[Row], list[str]]:
    """One case, all methods and structures; and the methods whose image lies elsewhere."""
    truth, spacing, place = _read(reference, case, evaluation)
    valid = None if evaluation.ignore_label is None else truth != evaluation.ignore_label
    rows, elsewhere = [], []
    for method, folder in predictions.items():
        path = folder / f"{case}{evaluation.file_ending}"
        labels, own_spacing, own_place = _read(path, case, evaluation)
        if labels.shape != truth.shape:
            raise ValueError(f"case {case}: {folder} has shape {labels.shape}, the reference {truth.shape}")
        if not np.allclose(own_spacing, spacing, rtol=1e-3):
            raise ValueError(f"case {case}: {folder} has spacing {_mm(own_spacing)}, the reference {_mm(spacing)}")
        if apart(place, own_place, spacing):
            elsewhere.append(method)
        for structure, values in evaluation.structures.items():
            real, found = np.isin(truth, values), np.isin(labels, values)
            metrics = overlap_metrics(real, found, valid)
            metrics |= surface_metrics(real, found, spacing, evaluation.tolerances[structure], valid)
            rows.append(Row(method, case, structure, {metric: metrics[metric] for metric in METRICS}))
    return rows, elsewhere


def _mm(spacing: list[float]) -> str:
    return "[" + ", ".join(f"{width:g}" for width in spacing) + "] mm"


def _read(path: Path, case: str, evaluation: Evaluation) -> tuple[np.ndarray[Any, Any], list[float], Corners | None]:
    """Labels ``(z, y, x)``, or ``(y, x)`` of a 2-D image, the voxel size in mm, and where the image lies."""
    try:
        labels, properties = read_segmentation(evaluation.reader, path)
    except ValueError as error:
        raise ValueError(f"case {case}: {error}") from error
    allowed = [*evaluation.values, *([] if evaluation.ignore_label is None else [evaluation.ignore_label])]
    unknown = np.setdiff1d(np.unique(labels), allowed)
    if unknown.size:
        raise ValueError(f"case {case}: {path} has label {label_text(unknown[0])}, dataset.json only {allowed}")
    spacing = [float(width) for width in properties["spacing"]]
    if labels.shape[0] == 1:  # nnU-Net reads 2-D images as one slice, of a thickness it makes up
        labels, spacing = labels[0], spacing[1:]
    return labels, spacing, corners(properties, labels.shape)
