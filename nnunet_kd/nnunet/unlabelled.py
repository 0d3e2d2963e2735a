"""Cases without a reference, which nnU-Net can train on because its ignore label stands for whatever is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

OUTSIDE = -1  # nnU-Net's label of voxels outside the body: background by the reference, and 0 in every channel


def empty_reference(images: np.ndarray, ignore_label: int) -> np.ndarray:
    """Return the segmentation of a case without a reference, to be written into ``labelsTr``.

    It has the ignore label wherever nnU-Net sees a body and 0 outside. If it had the ignore label there as well,
    nnU-Net could not tell body and outside apart, and plans that normalise inside the body (``use_mask_for_norm``, as
    for BraTS) would normalise such a case over the whole image, which prediction does not do.

    Args:
        images: The channels of the raw image, ``(channels, z, y, x)``.
        ignore_label: The value of ``"ignore"`` in ``dataset.json``.

    Returns:
        The labels ``(z, y, x)``, ``int16``.
    """
    return np.where(create_nonzero_mask(images), ignore_label, 0).astype(np.int16)


def has_reference(segmentation: Any, properties: Mapping[str, Any], labels: Any) -> bool:
    """Return whether the reference of a preprocessed case says anything about its body.

    The decision is about the whole case. A labelled case stays labelled in patches without an annotated voxel.

    Args:
        segmentation: The segmentation ``(1, z, y, x)``, which is read only if the properties do not tell.
        properties: nnU-Net's properties of the case.
        labels: nnU-Net's label manager.
    """
    annotated = (OUTSIDE, *labels.all_labels)
    locations = properties.get("class_locations") or {}
    if any(len(found) for key, found in locations.items() if key != annotated):
        return True
    if annotated in locations and not len(locations[annotated]):
        return False
    return bool(np.isin(np.asarray(segmentation[:1]), labels.all_labels).any())


def without_reference(dataset: Any, labels: Any, cases: Iterable[str] | None = None) -> list[str]:
    """Return the cases without a reference, in the order of the data set.

    Args:
        dataset: nnU-Net's data set of preprocessed cases.
        labels: nnU-Net's label manager. Without an ignore label, every case has a reference.
        cases: The cases to look at; ``None`` for all.
    """
    if not labels.has_ignore_label:
        return []
    found = []
    for case in dataset.identifiers if cases is None else cases:
        _, segmentation, _, properties = dataset.load_case(case)
        if not has_reference(segmentation, properties, labels):
            found.append(case)
    return found


def normalised_with_outside(dataset: Any, labels: Any, cases: Iterable[str], configuration: Any) -> list[str]:
    """Return the cases that nnU-Net normalised over body and outside although the plans ask for the body alone.

    Args:
        dataset: nnU-Net's data set of preprocessed cases.
        labels: nnU-Net's label manager.
        cases: Cases without a reference.
        configuration: nnU-Net's configuration manager.
    """
    if not any(configuration.use_mask_for_norm):
        return []
    annotated = (OUTSIDE, *labels.all_labels)
    return [case for case in cases if not len(dataset.load_case(case)[3].get("class_locations", {}).get(annotated, ()))]
