"""The check of cases without a reference, which learn from soft labels or not at all."""

from __future__ import annotations

from nnunet_kd.cli.doctor.experiment import ExperimentChecks

SOFT_KD = "nnUNetTrainerSoftKD"


def references(checks: ExperimentChecks) -> str | None:
    """Say how many cases have no reference, and check that there are soft labels for them.

    Args:
        checks: The checks of the experiment, of which the student's has been made.

    Returns:
        What was found; ``None`` if every case has a reference.

    Raises:
        ValueError: If the student cannot learn from the cases without a reference.
    """
    from nnunet_kd.nnunet.cases import PreprocessedCases
    from nnunet_kd.training.sources import find_soft_labels, soft_labels_command

    if "ignore" not in checks.dataset_json["labels"]:
        return None
    try:
        cases = PreprocessedCases(checks.folder, checks.experiment)
    except FileNotFoundError:  # already reported
        return None
    unlabelled = cases.without_reference()
    if not unlabelled:
        return None
    count, trainer = len(unlabelled), checks.trainer_name
    found = f"{count} of {len(cases.identifiers)} cases {'has' if count == 1 else 'have'} no reference"
    if mixed := cases.normalised_with_outside(unlabelled):
        raise ValueError(
            f"{found}, and {len(mixed)} of them have the ignore label outside the body too, so nnU-Net has normalised "
            "them over the whole image and will predict otherwise. Fix: give them label 0 where all channels are 0, "
            "and preprocess again"
        )
    term = None if checks.preparation is None else checks.preparation.soft_label_term
    if checks.preparation is None or term is None:
        if count == len(cases.identifiers):
            raise ValueError(f"{found}, and {trainer} reads no soft labels. Fix: train with -tr {SOFT_KD}")
        return f"{found}, and {trainer} learns nothing from them ({SOFT_KD} does)"
    try:
        store = find_soft_labels(checks.preparation.student, term)
    except FileNotFoundError:
        return f"{found}: they need soft labels"  # which the next check does not find
    without = [case for case in unlabelled if store.fault(case, cases) is not None]
    if without:
        raise ValueError(
            f"{found}, and {len(without)} of them, such as {without[0]}, have no soft labels '{store.name}'. Fix: "
            f"{soft_labels_command(checks.preparation.student)} {store.arguments} --continue"
        )
    return f"{found}, but all of them have soft labels '{store.name}'"
