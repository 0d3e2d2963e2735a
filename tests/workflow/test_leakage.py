"""What the report says about images that the teacher has seen."""

from nnunet_kd.teachers.leakage import Seen, seen_by_folds
from nnunet_kd.workflow.leakage import about_leakage
from tests.conftest import note_validated


def model_of(folder, validated, dataset_json='{"file_ending": ".nii.gz"}'):
    """Make the files of a model whose folds were validated on these cases; ``None`` for no validation."""
    (folder / "model").mkdir()
    (folder / "model" / "dataset.json").write_text(dataset_json)
    for fold, cases in validated.items():
        path = folder / "model" / f"fold_{fold}"
        path.mkdir()
        if cases is not None:
            note_validated(path, cases)
    return folder / "model"


def test_a_fold_has_trained_on_what_other_folds_kept_back(tmp_path):
    """Also folds that do not teach tell which cases belong to the teacher's data set."""
    model = model_of(tmp_path, {0: "ab", 1: "cd", 2: "e"})
    assert seen_by_folds(model, [0, 1], ["a", "c", "e", "new"]) == {
        0: Seen(("c", "e"), ("a",), ("new",)),
        1: Seen(("a", "e"), ("c",), ("new",)),
    }


def test_a_fold_that_was_not_validated(tmp_path):
    """It may have kept back a case that only dataset.json names."""
    listed = '{"file_ending": ".nii.gz", "training": [{"image": "./imagesTr/a.nii.gz"}, "x/b.nii.gz"]}'
    model = model_of(tmp_path, {0: None, 1: "c"}, listed)
    seen = seen_by_folds(model, [0, 1], ["a", "b", "c"])
    assert seen == {0: Seen(("c",), (), ("a", "b")), 1: Seen(("a", "b"), ("c",), ())}


def test_the_fold_of_all_cases_has_trained_on_all_that_are_named(tmp_path):
    model = model_of(tmp_path, {"all": None, 0: "a"}, '{"file_ending": ".nii.gz", "dataset": {"b": {}}}')
    assert seen_by_folds(model, ["all"], ["a", "b", "c"]) == {"all": Seen(("a", "b"), (), ("c",))}


def test_nothing_is_said_if_no_fold_has_seen_anything():
    assert about_leakage({0: Seen((), ("a", "b"), ())}, 2) == []


def test_one_fold():
    (warning,) = about_leakage({0: Seen((), (), ("a", "b"))}, 2)
    assert warning.startswith("The teacher may have been trained on these images: its files do not name them among")
    said = about_leakage({0: Seen(("a",), ("b",), ("c",))}, 3)
    assert said[0].startswith("By its files, the teacher has been trained on 1 of these 3 images: on these, agreement")
    assert said[1].startswith("The teacher may have been trained on 1 of these 3 images: its files do not name")
    assert len(said) == 2


def test_several_folds_are_described_one_by_one():
    seen = {0: Seen(("a", "b", "c", "d", "e"), (), ()), 1: Seen(("a",), ("b", "c", "d"), ("e",))}
    assert about_leakage(seen, 5)[-1] == (
        "Fold 0 was trained on a, b, c and 2 others. Fold 1 was trained on a, was validated on b, c and d, and is not "
        "known to have seen or not seen e."
    )
