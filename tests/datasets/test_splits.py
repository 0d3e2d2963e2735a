"""Test sets and folds keep groups together."""

from nnunet_kd.datasets.cases import Case
from nnunet_kd.datasets.splits import official_or_grouped_splits, with_test_set


def test_splits_keep_groups_and_official_parts():
    cases = [Case(f"{patient}_{visit}", group=str(patient)) for patient in range(7) for visit in range(patient % 3 + 1)]
    splits = official_or_grouped_splits(cases)
    assert splits == official_or_grouped_splits(list(reversed(cases)))
    for split in splits:
        assert not {one.split("_")[0] for one in split["train"]} & {one.split("_")[0] for one in split["val"]}
    assert official_or_grouped_splits([Case(str(number)) for number in range(9)]) is None
    two = official_or_grouped_splits(cases[:3])  # fewer patients than folds
    assert sorted(split["val"] for split in two) == [["0_0"], ["1_0", "1_1"]]
    assert official_or_grouped_splits(cases[1:3]) is None  # one patient


def test_a_case_less_moves_no_other_out_of_the_test_set():
    cases = [Case(f"sub-{number:03d}") for number in range(100)]
    held_out = {case.identifier for case in with_test_set(cases, 0.2) if case.test}
    assert len(held_out) == 20
    for gone in (0, 50):
        again = {case.identifier for case in with_test_set([*cases[:gone], *cases[gone + 1 :]], 0.2) if case.test}
        assert len(held_out ^ again) <= 2
