"""From a published layout to nnU-Net's raw format: what every converter declares, and the work they share.

A converter finds cases and writes one case at a time; this module runs it over all of them in several processes,
and lets the finished data set appear in ``nnUNet_raw`` at once, or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.dataset_names import are_confused
from nnunet_kd.nnunet.images import is_left_over
from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.storage.integrity import text_digest
from nnunet_kd.storage.overwriting import lies_in
from nnunet_kd.storage.processes import end_with_parent
from nnunet_kd.storage.writing import is_full, new_folder, write_whole

SEED = 12345  # nnU-Net's own for splits
FOLDS = 5


@dataclass(frozen=True)
class Options:
    """What a person can choose; each format takes some of these.

    Attributes:
        regions: Overlapping regions as nnU-Net's region-based training wants them, instead of classes.
        grid: ISLES: ``"flair"`` or ``"dwi"``.
        volumes: TCGA: stack the slices of a patient.
        classes: BUSI: benign and malignant are two classes.
        organs: Synapse: 13, or the 8 of the papers' tables.
        t2: FCD: a third channel, zeros where a case has none.
    """

    regions: bool = False
    grid: str = "flair"
    volumes: bool = False
    classes: bool = False
    organs: int = 13
    t2: bool = False


@dataclass(frozen=True)
class Case:
    """One case in the source.

    Attributes:
        identifier: Its name in nnU-Net.
        files: Role -> file or files.
        test: Belongs into ``imagesTs``.
        validation: Belongs to the official validation set.
        group: Cases of one group (a patient) are never parted by a split; ``None``: it is alone.
        problem: Why it cannot be converted.
    """

    identifier: str
    files: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False
    validation: bool = False
    group: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Target:
    """Where a case is written to.

    Attributes:
        folder: Of the data set that is being made.
        ending: Of its files.
    """

    folder: Path
    ending: str

    def image(self, case: Case, channel: int = 0) -> Path:
        """Path of a channel."""
        return self.folder / ("imagesTs" if case.test else "imagesTr") / f"{case.identifier}_{channel:04d}{self.ending}"

    def label(self, case: Case) -> Path:
        """Path of the label."""
        return self.folder / ("labelsTs" if case.test else "labelsTr") / f"{case.identifier}{self.ending}"


@dataclass(frozen=True)
class Description:
    """What goes into ``dataset.json``."""

    channel_names: tuple[str, ...]
    labels: Mapping[str, int | Sequence[int]]
    file_ending: str
    regions_class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Format:
    """One published data set.

    Attributes:
        id: Its number in nnU-Net.
        name: Its name, without spaces.
        modality: What the images are.
        size: How many cases, as published.
        licence: On what terms.
        where: Where a person gets it.
        layout: Files that are expected, relative to the folder a person gives.
        find: All cases of a source folder, and remarks.
        describe: ``dataset.json``.
        convert: Writes one case; raises ``ValueError`` naming the file that is wrong, returns a remark or ``None``.
        options: Names of the :class:`Options` it takes.
        test_share: Part of the cases that becomes the test set, drawn by group, where the source has none.
    """

    id: int
    name: str
    modality: str
    size: str
    licence: str
    where: str
    layout: str
    find: Callable[[Path, Options], tuple[list[Case], list[str]]]
    describe: Callable[[Options], Description]
    convert: Callable[[Case, Target, Options], str | None]
    options: tuple[str, ...] = ()
    test_share: float = 0.0


@dataclass(frozen=True)
class Converted:
    """What was made.

    Attributes:
        folder: The data set in ``nnUNet_raw``.
        training: Number of training cases.
        test: Number of test cases.
        skipped: A sentence a case that was left out.
        notes: Remarks of the converter, on the source and on single cases.
        splits: Whether it brings ``splits_final.json``.
        placed: Where in ``nnUNet_preprocessed`` these splits are now; ``None``: others were there, that folder takes
            none, or it has none.
        other_splits: Those that are there already and are not of these cases.
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
    form: Format,
    source: Path,
    raw: Path,
    number: int,
    options: Options,
    skip_bad: bool = False,
    workers: int = 2,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda work, _: work,
    preprocessed: Path | None = None,
) -> Converted:
    """Make ``DatasetXXX_Name`` in ``raw``.

    Args:
        form: The data set.
        source: Folder in its published layout.
        raw: nnU-Net's ``nnUNet_raw``.
        number: XXX.
        options: What was chosen.
        skip_bad: Leave cases out that cannot be converted.
        workers: Processes, one being this; each holds one case at a time.
        progress: Shows the work.
        preprocessed: nnU-Net's ``nnUNet_preprocessed``, where it looks for the splits.

    Raises:
        DiskFullError: Naming the file that could not be written.
        ValueError: Naming the first file that is missing, cannot be read, or has labels it should not have; and where
            the data set would lie among the files of its own source.
        FileExistsError: Where the data set is there already.
        FileNotFoundError: Where the source is not there, or holds no case.
    """
    folder = raw / f"Dataset{number:03d}_{form.name}"
    if raw.is_dir() and source.is_dir() and raw.samefile(source):
        raise ValueError(f"{folder} would lie among the files of its own source: give another folder with --raw")
    taken = [path.name for path in raw.iterdir() if are_confused(path.name, folder.name)] if raw.is_dir() else []
    if taken:
        remove = "" if lies_in(source, raw / taken[0]) else ", or remove it"
        raise FileExistsError(f"{raw / taken[0]} is there already: choose another number with -d{remove}")
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    cases, notes = form.find(source, options)
    if not cases:
        raise FileNotFoundError(f"{source} has no case of {form.name}. Expected: {form.layout}")
    _check_identifiers(cases)
    skipped = [f"{case.identifier}: {case.problem}" for case in cases if case.problem is not None]
    if skipped and not skip_bad:
        raise ValueError(f"{skipped[0]}. --skip-bad leaves such cases out")
    cases = _with_test_set([case for case in cases if case.problem is None], form.test_share)

    with new_folder(folder) as unfinished:
        description = form.describe(options)
        bad, remarks = _convert_all(
            form, cases, Target(unfinished, description.file_ending), options, skip_bad, workers, progress
        )
        notes = [*notes, *(f"{identifier}: {remark}" for identifier, remark in sorted(remarks.items()))]
        skipped += [f"{identifier}: {problem}" for identifier, problem in bad.items()]
        cases = [case for case in cases if case.identifier not in bad]
        training = sum(not case.test for case in cases)
        if all(case.test or case.validation for case in cases):
            raise ValueError(f"{source} has no training case" + (f" that is left: {skipped[0]}" if skipped else ""))
        _write_json(unfinished / "dataset.json", _dataset_json(form, description, training))
        splits = official_or_grouped_splits(cases)
        placed = other = None
        used = None if preprocessed is None else preprocessed / folder.name / "splits_final.json"
        if splits is not None:
            _write_json(unfinished / "splits_final.json", splits)
        if used is not None and _are_others(used, splits, {case.identifier for case in cases if not case.test}):
            other = used
        elif used is not None and splits is not None:  # before the data set is there: else a kill would part them
            placed = _place_splits(splits, used)
    return Converted(folder, training, len(cases) - training, skipped, notes, splits is not None, placed, other)


def _are_others(path: Path, splits: Any, cases: set[str]) -> bool:
    """Whether splits are there that are not these or, where there are none to be, not of these cases."""
    if not path.exists():
        return False
    try:
        there = read_splits(path)
    except ValueError:
        return True
    if splits is not None:
        return bool(there != splits)
    return any({*fold["train"], *fold["val"]} != cases for fold in there)


def _place_splits(splits: Any, path: Path) -> Path | None:
    """Write splits where there are none or the same; ``None`` where that folder takes none: they can be copied."""
    try:
        if not path.exists():
            _write_json(path, splits)
    except OSError:
        return None
    return path


def _convert_all(
    form: Format,
    cases: Sequence[Case],
    target: Target,
    options: Options,
    skip_bad: bool,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Write every case; identifier -> problem of those that could not be, and identifier -> remark."""
    for name in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if any(case.test for case in cases) else ())):
        (target.folder / name).mkdir(parents=True)
    bad: dict[str, str] = {}
    remarks: dict[str, str] = {}
    with closing(_problems(form, cases, target, options, workers)) as problems:
        for case, (problem, remark) in progress(problems, len(cases)):
            if problem is not None:
                bad[case.identifier] = problem
                if not skip_bad:
                    raise ValueError(f"{case.identifier}: {problem}. --skip-bad leaves such cases out")
            elif remark is not None:
                remarks[case.identifier] = remark
    return bad, remarks


def _problems(
    form: Format, cases: Sequence[Case], target: Target, options: Options, workers: int
) -> Generator[tuple[Case, tuple[str | None, str | None]], None, None]:
    """Write every case, in this process or in several; each with its problem and remark, in the order they are done."""
    if workers == 1:
        for case in cases:
            yield case, _convert_one(form.name, case, target, options)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = {pool.submit(_convert_one, form.name, case, target, options): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _convert_one(name: str, case: Case, target: Target, options: Options) -> tuple[str | None, str | None]:
    """Problem and remark, where there are any.

    With a problem nothing of the case is left. A full disk is not the case's problem.
    """
    from nnunet_kd.datasets.formats import FORMATS

    try:
        return None, FORMATS[name].convert(case, target, options)
    except (ValueError, OSError, RuntimeError) as error:  # libraries for images raise all of them
        if is_full(error, target.folder):
            raise
        own = re.compile(rf"{re.escape(case.identifier)}(_\d{{4}})?{re.escape(target.ending)}")
        for path in target.folder.glob("*/*"):
            if own.fullmatch(path.name):
                path.unlink()
        return str(error), None


def _check_identifiers(cases: Sequence[Case]) -> None:
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.get(case.identifier.lower())  # disks may not tell capitals apart
        if other is not None:
            raise ValueError(f"two cases would have the same files: {other} and {case.identifier}")
        seen[case.identifier.lower()] = case.identifier


def _with_test_set(cases: list[Case], share: float) -> list[Case]:
    """A share of the cases, in whole groups drawn with nnU-Net's seed, becomes the test set."""
    wanted = round(share * len(cases))
    if not wanted or any(case.test for case in cases):
        return cases
    chosen: set[str] = set()
    count = 0
    groups = _groups(cases)
    for name in _shuffled(groups):
        if count + len(groups[name]) <= wanted:
            chosen.update(groups[name])
            count += len(groups[name])
    return [
        Case(**{**{f.name: getattr(case, f.name) for f in fields(Case)}, "test": case.identifier in chosen})
        for case in cases
    ]


def _groups(cases: Iterable[Case]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(case.group or case.identifier, []).append(case.identifier)
    return groups


def _shuffled(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """By what is drawn for each name alone, so that a case more or less moves no other."""
    return sorted(groups, key=lambda name: text_digest(f"{SEED} {name}"))


def official_or_grouped_splits(cases: Sequence[Case]) -> list[dict[str, list[str]]] | None:
    """What goes into ``splits_final.json``; ``None`` where nnU-Net's own random split is as good.

    The official training and validation set where there are such; else five folds of whole groups, fewer where there
    are fewer groups.
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
    splits = []
    for fold in range(folds):
        held = {identifier for name in names[fold::folds] for identifier in groups[name]}
        everyone = sorted(case.identifier for case in training)
        splits.append({"train": [one for one in everyone if one not in held], "val": sorted(held)})
    return splits


def _dataset_json(form: Format, description: Description, training: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(description.channel_names)},
        "labels": dict(description.labels),
        "numTraining": training,
        "file_ending": description.file_ending,
        "name": form.name,
        "licence": form.licence,
        "reference": form.where,
    }
    if description.regions_class_order is not None:
        content["regions_class_order"] = list(description.regions_class_order)
    return content


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1))


def entries(folder: Path) -> list[Path]:
    """What a folder holds, without hidden files and what systems leave behind, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not is_left_over(path.name))


def folders_below(folder: Path) -> Iterator[Path]:
    """All folders in a folder, and in these, but for what systems leave behind.

    Symbolic links are followed, each folder is visited once.
    """
    seen = set()
    for path, names, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # links may lead in a circle
            names.clear()
            continue
        seen.add(real)
        names[:] = [name for name in names if not is_left_over(name)]
        yield from (Path(path) / name for name in names)


def find_file(folder: Path, *endings: str) -> Path | None:
    """The file of a folder whose name ends so, in capitals or not; ``None`` where there is none.

    A link to a file that was not fetched yet, as git-annex makes them, is one: reading it says what is wrong.
    """
    if not folder.is_dir():
        return None
    for path in entries(folder):
        named = path.name.lower().endswith(tuple(ending.lower() for ending in endings))
        if named and (path.is_file() or is_dangling(path)):
            return path
    return None


def is_dangling(path: Path) -> bool:
    """Whether it is a link to nothing."""
    return path.is_symlink() and not path.exists()


def missing(files: Mapping[str, Path | None], folder: Path) -> str | None:
    """A sentence naming the roles without a file."""
    lost = [role for role, path in files.items() if path is None]
    return f"{folder} has no {', '.join(lost)}" if lost else None
