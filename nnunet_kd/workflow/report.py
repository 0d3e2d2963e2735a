"""The report of a distillation: the student beside its teacher, on images that were kept back from its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation import page
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.measure import Measured, Model, measure_in_turn
from nnunet_kd.evaluation.page import Gallery
from nnunet_kd.evaluation.pictures import Case, draw_cases
from nnunet_kd.evaluation.protocol import Evaluation, read_evaluation
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.evaluation.statistics import mean_interval
from nnunet_kd.evaluation.summary import metric_table
from nnunet_kd.evaluation.table import Table
from nnunet_kd.evaluation.text import in_html
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.storage.processes import usable_cores
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.report import cost_table
from nnunet_kd.teachers.leakage import Seen, seen_by_folds
from nnunet_kd.teachers.mapping import LabelMap
from nnunet_kd.workflow.distillation import FINAL, Distillation
from nnunet_kd.workflow.leakage import about_leakage
from nnunet_kd.workflow.segmentations import write_with_labels_of_student

TEACHER, STUDENT = "teacher", "student"


def write_distillation_report(made: Distillation) -> Path:
    """Compare student and teacher on the images that were kept back, and write ``report.html``.

    Args:
        made: A distillation whose steps have ended.
    """
    folders = _segmentations(made)
    evaluation = read_evaluation(made.dataset, made.plans, next(folders[TEACHER].iterdir()))
    workers = usable_cores()
    agreement = evaluate_folders(folders[TEACHER], {STUDENT: folders[STUDENT]}, evaluation, workers)
    references = {case: made.cases.labels[case] for case in made.val_cases if case in made.cases.labels}
    accuracy = evaluate_folders(references, folders, evaluation, workers) if references else []
    costs = _costs(made)
    seen = seen_by_folds(made.model_folder, made.folds, made.val_cases)
    numbers = {**_numbers(agreement, accuracy, costs), "seen": {str(fold): asdict(one) for fold, one in seen.items()}}
    write_whole(made.out / "metrics.json", json.dumps(numbers, indent=2))
    path = made.out / "report.html"
    write_whole(path, _page(made, agreement, accuracy, costs, seen, _draw(made, folders, agreement, evaluation)))
    return path


def verdict(agreement: Sequence[Row], accuracy: Sequence[Row], costs: Mapping[str, Measured]) -> list[str]:
    """Return in a few sentences how close the student is to its teacher, and what it costs."""
    scores = Scores(agreement)
    dice = mean_interval(scores.runs(STUDENT))
    smaller = costs[TEACHER].network.parameters / costs[STUDENT].network.parameters
    faster = costs[TEACHER].seconds / costs[STUDENT].seconds
    said = [
        f"The student agrees with its teacher with a Dice of {100 * dice.value:.1f} % [{100 * dice.low:.1f}, "
        f"{100 * dice.high:.1f}] on {len(scores.cases)} images kept back, with 1/{smaller:.1f} of its parameters "
        f"and in 1/{faster:.1f} of its time."
    ]
    if accuracy:
        labelled = Scores(accuracy)
        mine, theirs = (100 * mean_interval(labelled.runs(who)).value for who in (STUDENT, TEACHER))
        said.append(
            f"Against the references of {len(labelled.cases)} of them, its Dice is {mine:.1f} %, and the teacher's is "
            f"{theirs:.1f} %."
        )
    else:
        said.append("No image that was kept back has a reference, so nothing is known about accuracy.")
    return said


def _segmentations(made: Distillation) -> dict[str, Path]:
    """Return the folders of the segmentations of student and teacher, with the same names and labels."""
    ending, theirs = made.cases.ending, made.teacher.dataset_json["file_ending"]
    predicted = {case: made.out / "predictions" / "teacher" / f"{case}{theirs}" for case in made.val_cases}
    label_map = LabelMap.of(made.request.student.label_map, made.teacher.dataset_json, made.dataset)
    reader = PlansManager(made.teacher.plans).image_reader_writer_class
    of_teacher = made.out / "segmentations" / TEACHER
    write_with_labels_of_student(predicted, of_teacher, ending, (reader, made.reader), label_map)
    own = made.results / "fold_0" / "validation"
    of_student = link_cases(
        made.out / "segmentations" / STUDENT, {case: [own / f"{case}{ending}"] for case in made.val_cases}
    )
    return {STUDENT: of_student, TEACHER: of_teacher}


def _costs(made: Distillation) -> dict[str, Measured]:
    """Measure the networks; the seconds and FLOPs of a teacher of several folds are those of all of them."""
    linked = {case: sorted((made.raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].*")) for case in made.val_cases}
    images = link_cases(made.out / "kept_back_of_student", linked)
    models = [
        Model(made.model_folder / f"fold_{made.folds[0]}" / FINAL, made.configuration, made.request.trust),
        Model(made.results / "fold_0" / FINAL, made.configuration),
    ]
    one, student = measure_in_turn(models, [made.out / "kept_back", images], made.request.device)
    folds = len(made.folds)
    ensemble = Measured(one.network, one.passes * folds, one.seconds * folds, one.peak_bytes, one.device, one.cases)
    return {TEACHER: ensemble, STUDENT: student}


def _page(
    made: Distillation,
    agreement: Sequence[Row],
    accuracy: Sequence[Row],
    costs: Mapping[str, Measured],
    seen: Mapping[int | str, Seen],
    pictures: Gallery | None,
) -> str:
    title = f"A student of {made.name}"
    parts: list[tuple[str, str, Table]] = [
        (
            "Agreement with the teacher",
            "The teacher's segmentations take the place of references here. Agreement is not accuracy: a student that "
            "repeats every error of its teacher agrees with it completely.",
            metric_table(Scores(agreement)),
        )
    ]
    if accuracy:
        parts.append(("Accuracy", "Both are compared with the references.", metric_table(Scores(accuracy))))
    device = costs[STUDENT].device
    of_folds = "" if len(made.folds) == 1 else f" The teacher's are those of {len(made.folds)} folds."
    parts.append(
        (
            "Cost",
            f"Seconds and FLOPs per case are those of the network in nnU-Net's predictor with mirroring, on {device}."
            f"{of_folds} Parameters and memory are those of one network.",
            cost_table(costs, TEACHER),
        )
    )
    shown = [f"<h1>{in_html(title)}</h1>", page.verdicts(verdict(agreement, accuracy, costs))]
    shown += [page.warning(text) for text in about_leakage(seen, len(made.val_cases))]
    shown += [page.gallery(pictures)] if pictures is not None else []
    shown.append("<h2>Tables</h2>")
    shown += [page.section(heading, note, [table], unfolded=True) for heading, note, table in parts]
    shown += ["<h2>About this distillation</h2>", page.facts(_facts(made))]
    return page.whole_page(title, shown)


def _facts(made: Distillation) -> list[str]:
    trained, kept = made.train_cases, made.val_cases
    labelled = sum(case in made.cases.labels for case in (*trained, *kept))
    folds = ", ".join(str(fold) for fold in made.folds)
    facts = [
        f"Teacher: {made.name}, fold{'s' if len(made.folds) > 1 else ''} {folds}",
        f"Images: {len(trained)} to train with and {len(kept)} kept back; {labelled} have a reference",
        f"Student: widths divided by {made.request.student.reduction:g}",
    ]
    if made.random_start is not None:
        facts.append(f"Initial weights: random, because {made.random_start}")
    if made.request.student.spacing is not None:
        now, before = (made.plans, made.teacher.plans)
        sizes = [
            " x ".join(f"{length:g}" for length in plans["configurations"][made.configuration]["spacing"])
            for plans in (now, before)
        ]
        facts.append(f"Voxels: {sizes[0]} mm, those of the teacher have {sizes[1]} mm")
    if made.request.student.channels is not None:
        facts.append(f"Channels: {', '.join(made.dataset['channel_names'].values())}")
    facts.append(f"Epochs: {made.request.schedule['num_epochs']}")
    return facts


def _draw(
    made: Distillation, folders: Mapping[str, Path], agreement: Sequence[Row], evaluation: Evaluation
) -> Gallery | None:
    """Draw the worst, the median and the best case by agreement."""
    scores = Scores(agreement)
    dice = scores.of(STUDENT)
    order = [int(i) for i in np.argsort(dice) if np.isfinite(dice[i])]
    if not order:
        return None
    titles = {order[len(order) // 2]: "Median", order[-1]: "Best", order[0]: "Worst"}
    cases = {}
    for number in sorted(titles, key=order.index):
        case = scores.cases[number]
        images, properties = made.reader().read_images([str(made.cases.images[case][0])])
        labels: dict[str, Any] = {
            who: read_segmentation(made.reader, folder / f"{case}{made.cases.ending}")[0]
            for who, folder in folders.items()
        }
        spacing = [float(length) for length in properties["spacing"]]
        notes = {STUDENT: f"{100 * dice[number]:.1f} % Dice"}
        cases[f"{titles[number]}: {case}"] = Case(
            images[0], labels[TEACHER], {STUDENT: labels[STUDENT]}, spacing, notes
        )
    title = "Worst, median and best case by agreement"
    return draw_cases(title, "The reference here is the teacher.", cases, evaluation.structures, TEACHER)


def _numbers(agreement: Sequence[Row], accuracy: Sequence[Row], costs: Mapping[str, Measured]) -> dict[str, Any]:
    def listed(rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [
            {"method": row.method, "case": row.case, "structure": row.structure}
            | {name: value if np.isfinite(value) else None for name, value in row.values.items()}
            for row in rows
        ]

    measured = {
        who: {"parameters": cost.network.parameters, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
        for who, cost in costs.items()
    }
    return {"agreement": listed(agreement), "accuracy": listed(accuracy), "cost": measured}
