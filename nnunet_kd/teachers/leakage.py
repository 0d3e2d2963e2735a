"""Detect teachers that have seen the student's validation cases, by their folds, data sets and splits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from nnunetv2.paths import nnUNet_preprocessed

from nnunet_kd.nnunet.reading import read_json, read_splits
from nnunet_kd.nnunet.settings import TeacherSettings, recorded_leakage

SPLITS = "splits_final.json"
_ENDINGS = {ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}


def teacher_folds(settings: TeacherSettings, fold: int | str) -> list[int | str]:
    """Return the folds of a teacher that teach student fold ``fold``."""
    if settings.folds == "same":
        return [fold]
    if settings.folds == "all":
        return ["all"]
    return [int(chosen) for chosen in settings.folds]


def leakage(settings: Sequence[TeacherSettings], fold: int | str) -> str | None:
    """Return a warning if the settings let a teacher see the student's validation cases, otherwise ``None``.

    A teacher in a folder of its own is judged by its files: it may have been trained on other data and folds.
    """
    own = [entry for entry in settings if entry.folder is None]
    return leakage_of_folds([one for entry in own for one in teacher_folds(entry, fold)], fold)


def leakage_of_folds(teachers: Sequence[int | str], fold: int | str) -> str | None:
    """Return a warning if teachers of the student's data set have other folds than the student, otherwise ``None``."""
    leaking = list(dict.fromkeys(one for one in teachers if one != fold))
    if not leaking or fold == "all":  # fold "all" holds out no cases
        return None
    folds = ", ".join(f"fold {one}" for one in leaking)
    return (
        f"LEAKAGE: the teacher ({folds}) was trained on validation cases of student fold {fold}. "
        "The student's validation scores are optimistic and no estimate for new cases."
    )


def second_hand_leakage(teacher: Mapping[str, Any], student: Mapping[str, Any], fold: int | str) -> str | None:
    """Return a warning if the teacher's own plans reveal that it has seen validation cases, otherwise ``None``.

    Args:
        teacher: The teacher's plans.
        student: The student's plans.
        fold: The teacher's fold.
    """
    dataset = teacher.get("dataset_name")
    if dataset != student["dataset_name"]:
        return (
            f"LEAKAGE is possible: the teacher was trained on {dataset}, whose folds are not those of "
            f"{student['dataset_name']}: it may have seen the student's validation cases."
        )
    try:
        inherited = recorded_leakage(teacher).get(str(fold))
    except ValueError:  # the block was written by another version
        return None
    return None if inherited is None else f"{inherited} That teacher's student is the teacher here."


def leakage_of_split(
    kept_back: Collection[str] | None, validation: Collection[str] | None, fold: int | str
) -> str | None:
    """Return a warning if the splits have changed since the teacher was trained, otherwise ``None``.

    Args:
        kept_back: The cases that the teacher was not trained on, from :func:`validated_cases`.
        validation: The student's validation cases; ``None`` if nnU-Net has not split the data set yet.
        fold: The fold of the teacher and of the student.
    """
    if validation is None or fold == "all":  # fold "all" holds out no cases
        return None
    new = not_kept_back(kept_back, validation, fold)
    if new is None:
        return None
    return (
        f"LEAKAGE: the teacher was trained without keeping back {new}. "
        "The student's validation scores are optimistic and no estimate for new cases."
    )


def not_kept_back(kept_back: Collection[str] | None, validation: Collection[str], fold: int | str) -> str | None:
    """Describe the validation cases of a fold that its model may have seen, or return ``None`` if none are known."""
    new = [] if kept_back is None else sorted({*validation} - {*kept_back})
    if not new:
        return None
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    return f"{len(new)} of {len({*validation})} validation cases of fold {fold} ({new[0]}{more})"


def known_validation(dataset: str, fold: int | str) -> list[str] | None:
    """Return a fold's validation cases, or ``None`` if the fold does not exist yet or the splits cannot be read."""
    if fold == "all" or not nnUNet_preprocessed.is_set():
        return None
    try:
        return read_splits(Path(nnUNet_preprocessed.require()) / dataset / SPLITS)[int(fold)]["val"]
    except (FileNotFoundError, ValueError, IndexError):  # the training reports the error
        return None


def validated_cases(fold_folder: Path) -> frozenset[str] | None:
    """Return the cases on which nnU-Net has validated a fold's model, or ``None`` if the validation is not complete.

    Only the names of the cases are taken from ``summary.json``. Its folders, separators and file endings are those of
    the machine and the format that the validation used.

    Args:
        fold_folder: The folder of the fold in the results folder.
    """
    try:
        cases = read_json(fold_folder / "validation" / "summary.json")["metric_per_case"]
        files = [re.split(r"[/\\]", case["prediction_file"])[-1] for case in cases]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    endings = {*_ENDINGS, *_own_ending(fold_folder.parent / "dataset.json")}
    return frozenset(_without_ending(file, endings) for file in files)


@dataclass(frozen=True)
class Seen:
    """What the files of a model tell about some cases and one of its folds, by the names of the cases.

    Attributes:
        trained: The cases that the fold has trained on.
        kept_back: The cases on which it was validated, and which it has not trained on.
        unknown: The cases that the model's files do not name.
    """

    trained: tuple[str, ...]
    kept_back: tuple[str, ...]
    unknown: tuple[str, ...]


def seen_by_folds(model: Path, folds: Sequence[int | str], cases: Sequence[str]) -> dict[int | str, Seen]:
    """Tell which of some cases the folds of a model have trained on, as far as its files say.

    A fold trains on every case of its data set on which it is not validated, if the folds are those of nnU-Net's
    cross-validation. The data set consists of the cases on which any fold was validated, and of those that
    ``dataset.json`` lists.

    Args:
        model: The results folder, of which other folds than the given ones are read, too.
        folds: The folds to tell about.
        cases: The names of the cases.
    """
    validated = {path.name.removeprefix("fold_"): validated_cases(path) for path in model.glob("fold_*")}
    listed = _listed_cases(model / "dataset.json")
    found = {}
    for fold in folds:
        own = validated.get(str(fold))
        others = frozenset().union(*(names or () for other, names in validated.items() if other != str(fold)))
        # Without its own validation, a fold may have kept back any case that no other fold has kept back.
        trained = others if own is None and fold != "all" else (others | listed) - (own or frozenset())
        kept = own or frozenset()
        found[fold] = Seen(
            tuple(case for case in cases if case in trained),
            tuple(case for case in cases if case in kept and case not in trained),
            tuple(case for case in cases if case not in trained and case not in kept),
        )
    return found


def _listed_cases(dataset_json: Path) -> frozenset[str]:
    """Return the training cases that a ``dataset.json`` names; most name none."""
    try:
        content = read_json(dataset_json)
        named = [*content.get("dataset", ())]
        images = [one["image"] if isinstance(one, Mapping) else one for one in content.get("training", ())]
        files = [re.split(r"[/\\]", image)[-1] for image in images]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return frozenset()
    endings = {*_ENDINGS, *_own_ending(dataset_json)}
    return frozenset([*named, *(_without_ending(file, endings) for file in files)])


def _own_ending(dataset_json: Path) -> list[str]:
    """Return the file ending of a model's images, which nnU-Net's readers need not list."""
    try:
        return [str(read_json(dataset_json)["file_ending"])]
    except (FileNotFoundError, ValueError, KeyError):
        return []


def _without_ending(file: str, endings: Collection[str]) -> str:
    """Remove the longest matching ending from a file name or, if none matches, the part after the last dot."""
    fitting = [ending for ending in endings if file.lower().endswith(ending.lower())]
    return file.removesuffix(file[-max(map(len, fitting)) :]) if any(fitting) else Path(file).stem
