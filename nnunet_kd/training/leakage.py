"""Leakage: which validation cases of a training its teachers have seen, for the log and ``nnunet_kd doctor``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nnunet_kd.storage.integrity import file_digest
from nnunet_kd.teachers.find import TeacherFiles, find_teachers
from nnunet_kd.teachers.leakage import SPLITS, known_validation, leakage_of_split
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.training.preparation import Preparation


def teacher_leakage(
    preparation: Preparation, files: Sequence[TeacherFiles], validation: Collection[str] | None = None
) -> str | None:
    """Describe the leakage through teachers, judged by the settings, the teachers' files and the validation cases.

    Args:
        preparation: The student's preparation.
        files: The files of its teachers.
        validation: The student's validation cases; ``None`` for those that were known when the files were found.
    """
    return joined([preparation.leakage, *(_leakage(one, preparation.fold, validation) for one in files)])


def soft_label_leakage(
    preparation: Preparation, store: SoftLabelStore, validation: Collection[str] | None = None
) -> str | None:
    """Describe the leakage through stored soft labels, which can be older than the folds."""
    seen = [_leakage(one, preparation.fold, validation) for one in soft_label_teachers(preparation, store)]
    return joined([store.leakage(preparation.fold), *seen])


def soft_label_teachers(preparation: Preparation, store: SoftLabelStore) -> list[TeacherFiles]:
    """Return the teachers of the student's fold that made its stored soft labels, if the plans name them."""
    digests = store.manifest.get("source", {}).get("checkpoint_sha256")
    # SAM has one digest for all folds, so only a dict belongs to teachers.
    made_by = digests.get(str(preparation.fold)) if isinstance(digests, dict) else None
    if made_by is None:
        return []
    try:
        files = find_teachers(preparation.settings.teachers, preparation.student, preparation.fold)
    except (FileNotFoundError, ValueError):  # the teacher may have been removed
        return []
    return [one for one in files if one.fold == preparation.fold and file_digest(one.checkpoint) == made_by]


def unchecked(preparation: Preparation, files: Sequence[TeacherFiles]) -> str | None:
    """Say what cannot be checked about these teachers and why, or return ``None`` if all was checked."""
    fold, dataset = preparation.fold, str(preparation.student.plans["dataset_name"])
    own = [one for one in files if one.fold == fold]
    if fold == "all" or not own:  # fold "all" has no validation cases
        return None
    whether = f"whether the teacher has seen validation cases of fold {fold} cannot be checked"
    if known_validation(dataset, fold) is None:
        return (
            f"{whether} yet: nnU-Net makes {SPLITS} of {dataset} when the first training of the data set begins, and "
            "the student's log will report the result"
        )
    if any(one.kept_back is None for one in own):
        return f"{whether}: nnU-Net has not validated the teacher"
    return None


def _leakage(files: TeacherFiles, fold: int | str, validation: Collection[str] | None) -> str | None:
    """Describe the leakage of one teacher; teachers of other folds are judged by their files alone."""
    if files.leakage is not None or files.fold != fold:
        return files.leakage
    return leakage_of_split(files.kept_back, validation, fold)


def joined(leaks: Sequence[str | None]) -> str | None:
    """Join leakage notes into one text without duplicates; ``None`` if there are none."""
    return " ".join(dict.fromkeys(note for note in leaks if note is not None)) or None
