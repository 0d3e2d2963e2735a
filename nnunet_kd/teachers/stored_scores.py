"""How well stored soft labels segment the cases whose labels are known: is this teacher worth learning from?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.statistics import class_mean_and_error, mean_and_error
from nnunet_kd.evaluation.table import Table
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.unlabelled import OUTSIDE
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.teachers.stored_segmentations import StoredSegmentation

NOTE = (
    "Dice (%) of the stored segmentations against the labels, on the preprocessed grid: voxels are those that the "
    "student sees, not those of the raw images. A structure that both lack has no value."
)


def score_case(store: SoftLabelStore, cases: PreprocessedCases, case: str) -> list[Row]:
    """Compare the segmentation that a case's soft labels imply with its labels.

    Args:
        store: The soft labels, whose manifest belongs to the cases.
        cases: The preprocessed cases.
        case: nnU-Net's identifier of a case with a reference.

    Returns:
        One row per structure, with the metrics of :meth:`Confusion.metrics`.

    Raises:
        ValueError: If the soft labels of the case are missing, damaged or out of date, or have another shape.
    """
    store.check_cases(cases, [case])
    _, reference = cases.load(case)
    stored = StoredSegmentation(store.open(case), cases.labels)
    if stored.shape[1:] != reference.shape:
        raise ValueError(f"{store.path(case)} has shape {stored.shape[1:]}, but the case has {reference.shape}")
    found = stored.whole()[0]
    valid = reference != cases.labels.ignore_label if cases.labels.has_ignore_label else None
    reference = np.where(reference == OUTSIDE, 0, reference)
    same = reference == found
    right = int(np.count_nonzero(same if valid is None else same[valid]))
    rows = []
    for structure, value in cases.experiment.dataset_json["labels"].items():
        values = np.atleast_1d(value)
        if structure == "ignore" or values.tolist() == [0]:
            continue
        confusion = Confusion.of(np.isin(reference, values), np.isin(found, values), valid)
        rows.append(Row(store.name, case, structure, confusion.metrics(), confusion=confusion, right=right))
    return rows


def labelled_cases(cases: PreprocessedCases, wanted: Iterable[str]) -> list[str]:
    """Return those of some cases that have a reference."""
    without = {*cases.without_reference()}
    return [case for case in wanted if case not in without]


def score_table(rows: Sequence[Row]) -> Table:
    """Return the Dice (%) by case and structure, below it the means with their standard errors over cases."""
    by_case: dict[str, dict[str, float]] = {}
    for row in rows:
        by_case.setdefault(row.case, {})[row.structure] = row.values["dice"]
    structures = list(next(iter(by_case.values())))
    values = np.array([[dice[structure] for dice in by_case.values()] for structure in structures])
    several = len(structures) > 1
    lines = []
    for number, case in enumerate(by_case):
        own = values[:, number]
        lines.append([case, *map(_percent, own), *([_percent(mean_and_error(own)[0])] if several else [])])
    means = [mean_and_error(dice) for dice in values]
    means += [class_mean_and_error(values)] if several else []
    errors = ["" if np.isnan(error) else f" ± {_percent(error)}" for _, error in means]
    lines.append(["mean", *(_percent(mean) + error for (mean, _), error in zip(means, errors, strict=True))])
    return Table(["case", *structures, *(["mean"] if several else [])], lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if np.isfinite(value) else "-"
