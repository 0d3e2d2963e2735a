"""The table has every data set, and each of them declares its own options."""

import re
import subprocess
import sys
from dataclasses import Field

import pytest

from nnunet_kd.datasets.options import options_of
from nnunet_kd.datasets.table import DATASETS
from tests.datasets import layouts


def test_every_data_set_has_a_layout_a_number_and_a_name():
    assert layouts.LAYOUTS.keys() == DATASETS.keys()
    assert sorted(dataset.id for dataset in DATASETS.values()) == list(range(501, 512))


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_declares_what_the_list_shows(name):
    dataset = DATASETS[name]()
    for attribute in ("modality", "size", "licence", "where", "layout"):
        assert getattr(dataset, attribute)
    assert type(dataset).name == name and not re.search(r"\s", name)
    assert dataset.describe().labels["background"] == 0


@pytest.mark.parametrize("name", DATASETS)
def test_a_class_with_options_of_its_own_is_a_dataclass(name):
    """Else ``self.option`` would be the declaration, which is always true."""
    assert not [key for key, value in vars(DATASETS[name]).items() if isinstance(value, Field)]


def test_options_belong_to_these_data_sets():
    taken = {
        name: {option.name: option.default for option in options_of(dataset)} for name, dataset in DATASETS.items()
    }
    assert {name: options for name, options in taken.items() if options} == {
        "BraTS2024GLI": {"regions": False, "paper_split": False},
        "ISLES2022": {"paper_split": False, "grid": "flair"},
        "BraTS2021": {"regions": False},
        "TCGALGG": {"volumes": False, "paper_preprocessing": False},
        "FCD2023": {"t2": False},
        "KvasirSEG": {"test_set": False},
        "ISIC2017": {"vm_unet_split": False},
        "ISIC2018": {"vm_unet_split": False},
        "FetalHeadHC18": {"test_set": False},
        "BUSI": {"test_set": False, "classes": False},
        "Synapse": {"organs": 13, "transunet_split": False},
    }


def test_nothing_below_imports_the_table():
    """A data set's worker process imports that data set alone."""
    code = "import sys, nnunet_kd.datasets.{}; print(*(name for name in sys.modules if 'nnunet_kd.datasets' in name))"
    for module in ("conversion", "busi"):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True)
        assert module in done.stdout
        assert "datasets.table" not in done.stdout and "datasets.hc18" not in done.stdout
