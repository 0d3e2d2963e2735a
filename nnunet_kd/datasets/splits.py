"""Draw test sets and folds that keep the cases of a group together, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nnunet_kd.datasets.cases import Case
from nnunet_kd.storage.integrity import text_digest

SEED = 12345  # nnU-Net's own for splits
FOLDS = 5

Splits = list[dict[str, list[str]]]  # the content of splits_final.json


def with_test_set(cases: Sequence[Case], share: float) -> list[Case]:
    """Return the cases with a share of them moved to the test set, in whole groups.

    Cases are returned as they are if the source has a test set of its own.

    Args:
        cases: All cases.
        share: Part of the cases, from 0 to 1; fewer are drawn where groups do not fit.
    """
    wanted = round(share * len(cases))
    if not wanted or any(case.test for case in cases):
        return list(cases)
    chosen: set[str] = set()
    groups = _groups(cases)
    for name in _shuffled(groups):
        if len(chosen) + len(groups[name]) <= wanted:
            chosen.update(groups[name])
    return [replace(case, test=case.identifier in chosen) for case in cases]


def official_or_grouped_splits(cases: Sequence[Case]) -> Splits | None:
    """Return what goes into ``splits_final.json``; ``None`` where nnU-Net's own random split is as good.

    These are the official training and validation sets where the source has them; else five folds of whole groups, or
    one fold per group where there are fewer than five.
    """
    training = [case for case in cases if not case.test]
    validation = sorted(case.identifier for case in training if case.validation)
    if validation:
        rest = sorted(case.identifier for case in training if not case.validation)
        return [{"train": rest, "val": validation}]
    groups = _groups(training)
    if len(groups) == len(training) or len(groups) < 2:
        return None
    names = _shuffled(groups)
    folds = min(FOLDS, len(groups))
    everyone = sorted(case.identifier for case in training)
    splits = []
    for fold in range(folds):
        held_out = {identifier for name in names[fold::folds] for identifier in groups[name]}
        splits.append({"train": [one for one in everyone if one not in held_out], "val": sorted(held_out)})
    return splits


def _groups(cases: Iterable[Case]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(case.group or case.identifier, []).append(case.identifier)
    return groups


def _shuffled(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Sort groups by a digest of each name alone, so that one case more or less moves no other."""
    return sorted(groups, key=lambda name: text_digest(f"{SEED} {name}"))
