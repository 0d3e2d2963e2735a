"""ISIC 2017 and 2018 keep their official parts."""

import json
import shutil

import pytest

from tests.datasets import layouts
from tests.datasets.converting import convert


def test_isic_official_parts(converted):
    _, made = converted
    assert (made["ISIC2017"].training, made["ISIC2017"].test) == (5, 2)
    splits = json.loads((made["ISIC2017"].folder / "splits_final.json").read_text())
    assert splits == [
        {"train": ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"], "val": ["ISIC_0000003", "ISIC_0000004"]}
    ]
    assert made["ISIC2018"].notes == ["ISIC2018_Task1-2_Test_Input has no masks beside it and was left out"]
    assert not made["ISIC2018"].splits


def test_isic_without_its_training_set_is_refused(tmp_path):
    layouts.isic2017(tmp_path / "source")
    for path in (tmp_path / "source").glob("ISIC-2017_Training_*"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match="source has no training case"):
        convert("ISIC2017", tmp_path / "source", tmp_path)


def test_isic_of_another_year_is_left_alone(tmp_path):
    layouts.isic2017(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no case of ISIC2018"):
        convert("ISIC2018", tmp_path, tmp_path / "raw")
    layouts.isic2018(tmp_path)
    assert (convert("ISIC2018", tmp_path, tmp_path / "raw").training) == 3
    made = convert("ISIC2017", tmp_path, tmp_path / "raw")
    assert (made.training, made.test) == (5, 2)
