"""What the teachers of one training have seen of its validation cases: for its log and for ``nnunet_kd doctor``."""

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
    """What is known against these teachers: by the settings, by their own files and by the validation cases.

    Args:
        preparation: Of the student.
        files: Of its teachers.
        validation: The student's validation cases; ``None``: as far as they were known when the files were found.
    """
    return joined([preparation.leakage, *(_leakage(one, preparation.fold, validation) for one in files)])


def soft_label_leakage(
    preparation: Preparation, store: SoftLabelStore, validation: Collection[str] | None = None
) -> str | None:
    """The same of stored soft labels, which may be older than the folds."""
    seen = [_leakage(one, preparation.fold, validation) for one in soft_label_teachers(preparation, store)]
    return joined([store.leakage(preparation.fold), *seen])


def soft_label_teachers(preparation: Preparation, store: SoftLabelStore) -> list[TeacherFiles]:
    """The teachers of the student's own fold that made stored soft labels, where the plans name them."""
    digests = store.manifest.get("source", {}).get("checkpoint_sha256")
    made_by = digests.get(str(preparation.fold)) if isinstance(digests, dict) else None  # of SAM there is one file
    if made_by is None:
        return []
    try:
        files = find_teachers(preparation.settings.teachers, preparation.student, preparation.fold)
    except (FileNotFoundError, ValueError):  # it need not be there any more
        return []
    return [one for one in files if one.fold == preparation.fold and file_digest(one.checkpoint) == made_by]


def unchecked(preparation: Preparation, files: Sequence[TeacherFiles]) -> str | None:
    """What nobody can tell of these teachers, and why; ``None``: all was checked."""
    fold, dataset = preparation.fold, str(preparation.student.plans["dataset_name"])
    own = [one for one in files if one.fold == fold]
    if fold == "all" or not own:  # which keeps no case back
        return None
    whether = f"whether the teacher has seen validation cases of fold {fold} cannot be checked"
    if known_validation(dataset, fold) is None:
        return (
            f"{whether} yet: nnU-Net makes {SPLITS} of {dataset} when the first training of the data set begins, and "
            "the student's log will say it"
        )
    if any(one.kept_back is None for one in own):
        return f"{whether}: nnU-Net has not validated it"
    return None


def _leakage(files: TeacherFiles, fold: int | str, validation: Collection[str] | None) -> str | None:
    """Of one teacher; that of another fold has no such validation cases to begin with."""
    if files.leakage is not None or files.fold != fold:
        return files.leakage
    return leakage_of_split(files.kept_back, validation, fold)


def joined(leaks: Sequence[str | None]) -> str | None:
    """What has leaked as one text, each note once; ``None`` where nothing has."""
    return " ".join(dict.fromkeys(note for note in leaks if note is not None)) or None
