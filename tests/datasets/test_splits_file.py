"""nnU-Net uses the splits that lie in its folder: ours are placed there, or the report names others."""

import json

from tests.datasets.converting import convert


def test_splits_of_other_cases_are_pointed_at(converted, tmp_path):
    """Slices were converted before, now volumes, whose splits nnU-Net would draw; and folds of the user's own."""
    root, _ = converted
    preprocessed = tmp_path / "preprocessed"
    path = preprocessed / "Dataset504_TCGALGG" / "splits_final.json"

    def made(raw, volumes):
        return convert("TCGALGG", root / "TCGALGG", tmp_path / raw, preprocessed=preprocessed, volumes=volumes)

    first = made("one", volumes=False)
    assert (first.placed, first.other_splits) == (path, None)
    again = made("two", volumes=False)
    assert (again.placed, again.other_splits) == (path, None)
    assert (made("three", volumes=True).placed, made("four", volumes=True).other_splits) == (None, path)
    own = json.dumps(json.loads(path.read_text())[:1])
    path.write_text(own)
    other = made("five", volumes=False)
    assert (other.placed, other.other_splits) == (None, path) and path.read_text() == own
    labels = tmp_path / "three" / "Dataset504_TCGALGG" / "labelsTr"
    names = sorted(file.name.removesuffix(".nii.gz") for file in labels.iterdir())
    path.write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    assert made("six", volumes=True).other_splits is None


def test_splits_that_cannot_be_placed_cost_no_data_set(converted, tmp_path):
    root, _ = converted
    (tmp_path / "file").touch()
    made = convert("TCGALGG", root / "TCGALGG", tmp_path, preprocessed=tmp_path / "file")
    assert made.training == 18 and made.splits and made.placed is None
    assert (made.folder / "splits_final.json").is_file()
