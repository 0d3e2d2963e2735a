"""Pictures of the worst, the median and the best validation case of a study, as every method segments them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation import pictures
from nnunet_kd.evaluation.page import Gallery
from nnunet_kd.evaluation.pictures import Case
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.raw_cases import training_images, training_labels
from nnunet_kd.study.runs import TEACHER, Run
from nnunet_kd.study.study import Study
from nnunet_kd.study.validation import evaluation_of, key_of, references, segmentations


def draw_cases(study: Study, runs: Sequence[Run], rows: Sequence[Row], baseline: str) -> Gallery | None:
    """Draw the worst, median and best case of the last method, ranked by its Dice minus that of the baseline."""
    scores = Scores(rows)
    shown = runs[-1].method
    difference = scores.of(shown) - scores.of(baseline) if shown != baseline else scores.of(shown)
    order = [int(i) for i in np.argsort(difference) if np.isfinite(difference[i])]
    if not order:
        return None
    several = any(len(seeds) > 1 for seeds in scores.seeds.values())
    evaluation = evaluation_of(study, next(references(study, runs[0].fold).iterdir()), 1.0)
    titles = {order[len(order) // 2]: "Median", order[-1]: "Best", order[0]: "Worst"}
    cases = {}
    for index in sorted(titles, key=order.index):
        case = scores.cases[index]
        image, reference, labels, spacing = _read_case(study, runs, case, with_teacher=TEACHER in scores.methods)
        if evaluation.ignore_label is not None:  # segmentations cannot be wrong in voxels without a label
            known = reference != evaluation.ignore_label
            reference, labels = reference * known, {name: found * known for name, found in labels.items()}
        notes = {
            name: f"{100 * dice[index]:.1f} % Dice" for name in labels if np.isfinite((dice := scores.of(name))[index])
        }
        cases[f"{titles[index]}: {case}"] = Case(image, reference, labels, spacing, notes)
    what = f"{shown} minus {baseline}" if shown != baseline else shown
    of_seeds = "The Dice is the mean of the seeds, of which the first is shown." if several else ""
    title = f"Worst, median and best case by Dice of {what}"
    return pictures.draw_cases(title, of_seeds, cases, evaluation.structures, "reference")


def _read_case(
    study: Study, runs: Sequence[Run], case: str, with_teacher: bool
) -> tuple[Any, Any, dict[str, Any], list[float]]:
    """Return the first image, the reference and the segmentations of one case, ``(z, y, x)``, and its voxel size."""
    reader = PlansManager(study.plans).image_reader_writer_class
    ending = study.dataset_json["file_ending"]
    fold = next(run.fold for run in runs if case in study.folds.cases_of(run.fold))
    first = training_images(study.raw, study.dataset_json, [case])[case][0]
    image, properties = reader().read_images([str(first)])
    reference, _ = read_segmentation(reader, training_labels(study.raw, study.dataset_json, [case])[case])
    labels = {}
    keys = {TEACHER: TEACHER} if with_teacher else {}
    for run in runs:
        if run.fold == fold:
            keys.setdefault(run.method, key_of(run))
    for method, key in keys.items():
        labels[method], _ = read_segmentation(reader, segmentations(study, key, fold) / f"{case}{ending}")
    return image[0], reference, labels, [float(width) for width in properties["spacing"]]
