"""Segmentations by the teacher, with the labels of the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.storage.integrity import is_whole
from nnunet_kd.storage.writing import put_in_place, scratch_folder
from nnunet_kd.teachers.mapping import LabelMap


def with_labels_of_student(segmentation: np.ndarray[Any, Any], label_map: LabelMap) -> np.ndarray[Any, Any]:
    """Return a segmentation with the student's labels.

    Args:
        segmentation: The teacher's segmentation ``(z, y, x)``, as nnU-Net writes it.
        label_map: The structures of the teacher of which the student's structures consist. The student's heads are
            labels unless they are the teacher's.
    """
    if label_map.is_identity:
        return segmentation
    mapped = np.zeros_like(segmentation)
    values = [min(labels) for labels in label_map.student.labels]
    pairs = [(head, value) for group, value in zip(label_map.groups, values, strict=True) for head in group if value]
    for head, value in sorted(pairs):  # nnU-Net writes a later region over those before it
        mapped[np.isin(segmentation, list(label_map.teacher.labels[head]))] = value
    return mapped


def write_with_labels_of_student(
    predicted: Mapping[str, Path],
    folder: Path,
    ending: str,
    readers: tuple[type, type],
    label_map: LabelMap,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda cases: cases,
) -> None:
    """Write the teacher's segmentations with the student's labels and file ending.

    Args:
        predicted: The teacher's segmentation of every case.
        folder: The folder that is written to.
        ending: The student's file ending.
        readers: nnU-Net's classes that read the teacher's and write the student's files.
        label_map: See :func:`with_labels_of_student`.
        progress: Wraps the names of the cases to show how far the work is.
    """
    theirs, ours = readers
    for case in progress(list(predicted)):
        path = folder / f"{case}{ending}"
        if is_whole(path):
            continue
        segmentation, properties = read_segmentation(theirs, predicted[case])
        mapped = with_labels_of_student(segmentation, label_map)
        with scratch_folder(path) as scratch:
            unfinished = scratch / path.name
            ours().write_seg(mapped.astype(np.uint8 if mapped.max() < 256 else np.uint16), str(unfinished), properties)
            put_in_place(unfinished, path)
