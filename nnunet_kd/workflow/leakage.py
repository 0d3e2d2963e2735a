"""What a reader of the report must know before any number: which of its cases the teacher has trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nnunet_kd.teachers.leakage import Seen

_NAMED = 3  # cases that are named one by one


def about_leakage(seen: Mapping[int | str, Seen], count: int) -> list[str]:
    """Return the warnings about a teacher, no warning if no fold has trained on any of the cases.

    Args:
        seen: What each fold of the teacher has seen of the cases that were kept back from the student.
        count: The number of these cases.
    """
    trained = {case for one in seen.values() for case in one.trained}
    unknown = {case for one in seen.values() for case in one.unknown} - trained
    better = "agreement and accuracy are better than they would be on new images"
    warnings = []
    if trained:
        warnings.append(f"By its files, the teacher has been trained on {_of(trained, count)}: on these, {better}.")
    if unknown:
        warnings.append(
            f"The teacher may have been trained on {_of(unknown, count)}: its files do not name them among the cases "
            f"that it was validated on. Where it was, {better}."
        )
    if warnings and len(seen) > 1:
        warnings.append(" ".join(_about_fold(fold, one) for fold, one in seen.items()))
    return warnings


def _of(cases: Collection[str], count: int) -> str:
    return "these images" if len(cases) == count else f"{len(cases)} of these {count} images"


def _about_fold(fold: int | str, seen: Seen) -> str:
    """Say in one sentence what a fold has seen."""
    parts = [
        (seen.trained, "was trained on"),
        (seen.kept_back, "was validated on"),
        (seen.unknown, "is not known to have seen or not seen"),
    ]
    said = [f"{what} {_listed(cases)}" for cases, what in parts if cases]
    return f"Fold {fold} " + ", and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said) + "."


def _listed(cases: Sequence[str]) -> str:
    shown, rest = cases[:_NAMED], len(cases) - _NAMED
    if rest > 1:
        return f"{', '.join(shown)} and {rest} others"
    return ", ".join(cases[:-1]) + f" and {cases[-1]}" if len(cases) > 1 else cases[0]
