"""The split of the DCD paper is the one that stock nnU-Net draws of all cases."""

import json

import pytest

from nnunet_kd.datasets.table import DATASETS
from tests.datasets.converting import convert


@pytest.mark.parametrize("name", ["BraTS2024GLI", "ISLES2022"])
def test_no_test_set_is_drawn_and_nnunet_draws_the_folds(converted, tmp_path, name):
    root, made = converted
    usual = made[name]
    paper = convert(name, root / name, tmp_path, preprocessed=tmp_path / "preprocessed", paper_split=True)
    assert usual.test > 0 and (paper.training, paper.test) == (usual.training + usual.test, 0)
    assert not paper.splits and paper.placed is None and not (tmp_path / "preprocessed").exists()
    assert sorted(path.name for path in paper.folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]
    assert json.loads((paper.folder / "dataset.json").read_text())["numTraining"] == paper.training


def test_visits_stay_together_unless_the_papers_split_is_asked_for(converted):
    _, made = converted
    assert made["BraTS2024GLI"].splits


@pytest.mark.parametrize(
    ("name", "count", "fold", "validation"), [("BraTS2024GLI", 1350, 3, 270), ("ISLES2022", 250, 0, 50)]
)
def test_the_folds_have_the_papers_sizes(name, count, fold, validation):
    """Section 3.1: 1,080 and 270 cases, 200 and 50."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    assert DATASETS[name](paper_split=True).stock_split and not DATASETS[name]().stock_split
    split = generate_crossval_split([f"case{number:04d}" for number in range(count)])[fold]
    assert (len(split["train"]), len(split["val"])) == (count - validation, validation)
