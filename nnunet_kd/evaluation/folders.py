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

from nnunet_kd.evaluation.pairs import evaluate_pair
from nnunet_kd.evaluation.placement import Corners, apart, corners
from nnunet_kd.evaluation.protocol import Evaluation
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.images import is_left_over
from nnunet_kd.nnunet.labels import label_text
from nnunet_kd.storage.integrity import check_name
from nnunet_kd.storage.processes import end_with_parent

References = Path | Mapping[str, Path]  # a folder, or the files by case


def find_cases(reference: References, predictions: Mapping[str, Path], file_ending: str) -> list[str]:
    """Return the cases to evaluate.

    These are all cases in a folder of references. If the references are listed instead, they are the cases that have a
    prediction.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If a folder is empty, or a folder of predictions lacks a case; the message names the case.
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
    """Return the segmentation files in a folder by case.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If no file in it has the file ending.
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
    """Compute all metrics of all cases.

    As in nnU-Net, voxels with the same index in the two files are compared, whatever their position in space.

    Args:
        reference: The folder of the reference segmentations, or their files by case.
        predictions: The folder of each method.
        evaluation: The structures, labels and tolerances to evaluate.
        workers: The number of processes.
        progress: A function that wraps an iterable of a given length and shows the progress.
        warn: A function that receives a warning for each folder with predictions without a reference, which are
            ignored, and for each folder whose images have another position in space than the reference.

    Returns:
        The rows, in the given order of the methods, then by case, then in the order of the structures. If the
        evaluation is by slice, every slice is a case.

    Raises:
        ValueError: If a file cannot be read, or the shape, the spacing or the labels of a segmentation do not match its
            reference; the message names the case.
    """
    ending = evaluation.file_ending
    cases = find_cases(reference, predictions, ending)
    for folder in predictions.values():
        predicted = segmentations_in(folder, ending)
        if unknown := predicted.keys() - {*cases}:
            warn(
                f"{folder}: {len(unknown)} of {len(predicted)} predictions, for example {min(unknown)}, have no "
                "reference and are ignored"
            )
    truths = segmentations_in(reference, ending) if isinstance(reference, Path) else reference
    jobs = [(truths[case], predictions, case, evaluation) for case in cases]
    rows: dict[str, list[Row]] = {}
    elsewhere: dict[str, list[str]] = {}

    def keep(case: str, done: list[Row], methods: list[str]) -> None:
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
            f"{predictions[method]}: {len(found)} of {len(cases)} cases, for example {min(found)}, have another "
            "direction or origin than the reference; the voxels are compared by their index in the files"
        )
    order = list(predictions)
    return sorted((row for case in cases for row in rows[case]), key=lambda row: order.index(row.method))


def _set_up_worker() -> None:
    import torch

    end_with_parent()
    warnings.simplefilter("ignore", FutureWarning)  # libraries warn about themselves once per process
    torch.set_num_threads(1)


def _evaluate_case(
    reference: Path, predictions: Mapping[str, Path], case: str, evaluation: Evaluation
) -> tuple[str, list[Row], list[str]]:
    """Evaluate all methods in one case; return it, its rows, and the methods whose image lies elsewhere in space."""
    truth, spacing, place = _read(reference, case, evaluation)
    rows, elsewhere = [], []
    for method, folder in predictions.items():
        path = folder / f"{case}{evaluation.file_ending}"
        labels, own_spacing, own_place = _read(path, case, evaluation)
        if labels.shape != truth.shape:
            raise ValueError(f"case {case}: {folder} has shape {labels.shape}, but the reference has {truth.shape}")
        if not np.allclose(own_spacing, spacing, rtol=1e-3):
            raise ValueError(
                f"case {case}: {folder} has spacing {_mm(own_spacing)}, but the reference has {_mm(spacing)}"
            )
        if apart(place, own_place, spacing):
            elsewhere.append(method)
        rows += evaluate_pair(truth, labels, spacing, evaluation, method, case)
    return case, rows, elsewhere


def _mm(spacing: list[float]) -> str:
    return "[" + ", ".join(f"{width:g}" for width in spacing) + "] mm"


def _read(path: Path, case: str, evaluation: Evaluation) -> tuple[np.ndarray[Any, Any], list[float], Corners | None]:
    """Read the labels, ``(z, y, x)`` or ``(y, x)``, the spacing in mm and the corners of a segmentation."""
    try:
        labels, properties = read_segmentation(evaluation.reader, path)
    except ValueError as error:
        raise ValueError(f"case {case}: {error}") from error
    allowed = [*evaluation.values, *([] if evaluation.ignore_label is None else [evaluation.ignore_label])]
    unknown = np.setdiff1d(np.unique(labels), allowed)
    if unknown.size:
        raise ValueError(
            f"case {case}: {path} has label {label_text(unknown[0])}, but dataset.json allows only {allowed}"
        )
    spacing = [float(width) for width in properties["spacing"]]
    if labels.shape[0] == 1:  # nnU-Net reads a 2-D image as one slice with an invented thickness
        labels, spacing = labels[0], spacing[1:]
    return labels, spacing, corners(properties, labels.shape)
