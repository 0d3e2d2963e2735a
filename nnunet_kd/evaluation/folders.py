"""Evaluate folders of segmentations against one folder of references, case by case, in parallel."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.metrics import METRICS, overlap_metrics, surface_metrics
from nnunet_kd.evaluation.placement import Corners, apart, corners
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.images import is_left_over
from nnunet_kd.nnunet.labels import label_text
from nnunet_kd.storage.integrity import check_name
from nnunet_kd.storage.processes import end_with_parent
from nnunet_kd.storage.writing import write_whole

Structures = dict[str, tuple[int, ...]]
References = Path | Mapping[str, Path]  # a folder, or the file of every case


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how files are read.

    Attributes:
        structures: Name -> label values; several where it is a region.
        ignore_label: Voxels the reference marks with this do not count.
        values: All label values that may occur.
        file_ending: Of the segmentations.
        reader: nnU-Net's class that reads them.
        tolerances: Structure -> tolerance of its NSD in mm.
    """

    structures: Structures
    ignore_label: int | None
    values: tuple[int, ...]
    file_ending: str
    reader: type
    tolerances: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Metrics of one structure in one case, by one method.

    Attributes:
        seed: Of the training, where the method was trained with several.
    """

    method: str
    case: str
    structure: str
    values: dict[str, float]
    seed: int | None = None


def read_evaluation(
    dataset_json: Mapping[str, Any],
    plans: Mapping[str, Any] | None,
    example_file: Path,
    tolerance: float = 1.0,
    tolerances: Mapping[str, float] | None = None,
) -> Evaluation:
    """What a data set's description asks for.

    Args:
        dataset_json: nnU-Net's ``dataset.json``.
        plans: nnU-Net's plans, for the reader; found by the file ending if left out.
        example_file: Any of the segmentations.
        tolerance: Of the NSD, in mm.
        tolerances: Structure -> another tolerance.

    Raises:
        ValueError: For a tolerance of a structure that is not there, or plans without a reader.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = dict(dataset_json["labels"])
    ignore = labels.pop("ignore", None)
    structures = {}
    values = {0}
    for name, value in labels.items():
        listed = tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)
        values.update(listed)
        if listed != (0,):
            structures[name] = listed
    by_name = dict(tolerances or {})
    for name in by_name:
        if name not in structures:
            raise ValueError(f"there is no structure {name!r} to have a tolerance: {', '.join(structures)}")
    if plans is not None:
        if not isinstance(plans.get("image_reader_writer"), str):
            raise ValueError("the plans name no image_reader_writer")
        reader = PlansManager(dict(plans)).image_reader_writer_class
    else:
        reader = determine_reader_writer_from_dataset_json(dict(dataset_json), str(example_file), verbose=False)
    return Evaluation(
        structures,
        None if ignore is None else int(ignore),
        tuple(sorted(values)),
        dataset_json["file_ending"],
        reader,
        {name: float(by_name.get(name, tolerance)) for name in structures},
    )


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


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """``metrics.csv`` and ``metrics.json``, one row a method, case and structure; each is complete or absent.

    Where methods have seeds, there is a row a seed, and a column of them.

    Names are written as they are, quoted where they need it: both are for programs. A spreadsheet takes a name that
    begins with =, +, - or @ for a formula.
    """
    names = ["method", *(["seed"] if any(row.seed is not None for row in rows) else []), "case", "structure"]
    records = [{**{name: getattr(row, name) for name in names}, **_without_nan(row.values)} for row in rows]
    lines = [_line([*names, *METRICS])]
    lines += [_line(["" if value is None else value for value in record.values()]) for record in records]
    written = []
    for name, content in (("metrics.csv", "".join(lines)), ("metrics.json", json.dumps(records, indent=1))):
        write_whole(folder / name, content)
        written.append(folder / name)
    return written


def _line(cells: Sequence[str | float]) -> str:
    """Of a CSV file; quoted where the cells hold a comma, a quote or any end of a line."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # only with both does it quote a lone \r
    return line.getvalue().removesuffix("\r\n") + "\n"


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
