"""From a published layout to nnU-Net's raw format: the work that all data sets share.

A data set finds its cases and converts one at a time; this module does it for all of them. The finished data set
appears in ``nnUNet_raw`` at once, and nothing of it does before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.splits import official_or_grouped_splits, with_test_set
from nnunet_kd.datasets.splits_file import Placed, place_splits, write_splits
from nnunet_kd.datasets.workers import Progress, convert_cases
from nnunet_kd.nnunet.dataset_names import are_confused
from nnunet_kd.storage.overwriting import lies_in
from nnunet_kd.storage.writing import new_folder, write_whole


@dataclass(frozen=True)
class Converted:
    """What a conversion has made.

    Attributes:
        folder: The data set in ``nnUNet_raw``.
        training: Number of training cases.
        test: Number of test cases.
        skipped: One sentence per case that was left out.
        notes: Remarks of the data set, on the source and on single cases.
        splits: Whether the data set brings ``splits_final.json``.
        placed: The file in ``nnUNet_preprocessed`` that holds these splits now; ``None`` if there are none, or other
            splits are there, or the file cannot be written.
        other_splits: The file that already exists and holds splits that are not of these cases.
    """

    folder: Path
    training: int
    test: int
    skipped: list[str]
    notes: list[str]
    splits: bool
    placed: Path | None
    other_splits: Path | None


def convert_dataset(
    dataset: Dataset,
    source: Path,
    raw: Path,
    number: int | None = None,
    *,
    skip_bad: bool = False,
    workers: int = 2,
    progress: Progress = lambda work, _: work,
    preprocessed: Path | None = None,
) -> Converted:
    """Make ``DatasetXXX_Name`` in ``raw``.

    Args:
        dataset: The data set with the options that were chosen.
        source: The folder with the published files.
        raw: nnU-Net's ``nnUNet_raw``.
        number: The number XXX; by default the data set's own.
        skip_bad: Whether to leave out cases that cannot be converted.
        workers: Number of processes. One means this process; each holds one case at a time.
        progress: Shows the progress of the work.
        preprocessed: nnU-Net's ``nnUNet_preprocessed``, where it looks for splits.

    Raises:
        DiskFullError: Naming the file that could not be written.
        ValueError: Naming the first file that is missing, cannot be read, or has labels it should not have; and where
            the data set would lie among the files of its own source.
        FileExistsError: If ``raw`` has the data set already.
        FileNotFoundError: If there is no source, or it has no case.
    """
    folder = raw / f"Dataset{dataset.id if number is None else number:03d}_{dataset.name}"
    _check_place(source, raw, folder)
    cases, notes = _find_cases(dataset, source)
    skipped = [f"{case.identifier}: {case.problem}" for case in cases if case.problem is not None]
    if skipped and not skip_bad:
        raise ValueError(f"{skipped[0]}. --skip-bad leaves such cases out")
    share = 0.0 if dataset.stock_split else dataset.test_share
    cases = with_test_set([case for case in cases if case.problem is None], share)

    with new_folder(folder) as unfinished:
        description = dataset.describe()
        target = RawFolder(unfinished, description.file_ending)
        outcomes = convert_cases(dataset, cases, target, skip_bad, workers, progress)
        skipped += [f"{name}: {one.problem}" for name, one in outcomes.items() if one.problem is not None]
        notes += [f"{name}: {outcomes[name].remark}" for name in sorted(outcomes) if outcomes[name].remark is not None]
        cases = [case for case in cases if outcomes[case.identifier].problem is None]
        if all(case.test or case.validation for case in cases):
            raise ValueError(f"{source} has no training case" + (f" that is left: {skipped[0]}" if skipped else ""))
        training = {case.identifier for case in cases if not case.test}
        content = _dataset_json(dataset, description, len(training))
        write_whole(unfinished / "dataset.json", json.dumps(content, indent=1))
        splits = None if dataset.stock_split else official_or_grouped_splits(cases)
        if splits is not None:
            write_splits(splits, unfinished / "splits_final.json")
        placed = Placed()
        if preprocessed is not None:  # before the data set appears: a kill between the two would part them
            placed = place_splits(splits, training, preprocessed / folder.name / "splits_final.json")
    tests = len(cases) - len(training)
    return Converted(folder, len(training), tests, skipped, notes, splits is not None, placed.path, placed.others)


def _check_place(source: Path, raw: Path, folder: Path) -> None:
    """Refuse to write into the source, and beside a data set that nnU-Net would confuse with this one."""
    if raw.is_dir() and source.is_dir() and raw.samefile(source):
        raise ValueError(f"{folder} would lie among the files of its own source: give another folder with --raw")
    taken = [path.name for path in raw.iterdir() if are_confused(path.name, folder.name)] if raw.is_dir() else []
    if taken:
        remove = "" if lies_in(source, raw / taken[0]) else ", or remove it"
        raise FileExistsError(f"{raw / taken[0]} already exists: choose another number with -d{remove}")


def _find_cases(dataset: Dataset, source: Path) -> tuple[list[Case], list[str]]:
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    cases, notes = dataset.find(source)
    if not cases:
        raise FileNotFoundError(f"{source} has no case of {dataset.name}. Expected: {dataset.layout}")
    _check_identifiers(cases)
    return cases, notes


def _check_identifiers(cases: Sequence[Case]) -> None:
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.get(case.identifier.lower())  # disks may not tell capitals apart
        if other is not None:
            raise ValueError(f"two cases would have the same files: {other} and {case.identifier}")
        seen[case.identifier.lower()] = case.identifier


def _dataset_json(dataset: Dataset, description: Description, training: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(description.channel_names)},
        "labels": dict(description.labels),
        "numTraining": training,
        "file_ending": description.file_ending,
        "name": dataset.name,
        "licence": dataset.licence,
        "reference": dataset.where,
    }
    if description.regions_class_order is not None:
        content["regions_class_order"] = list(description.regions_class_order)
    return content
