"""The data set that the guide shows is converted as it stands."""

import json
import textwrap

import numpy as np
import pytest

from nnunet_kd.cli import main
from nnunet_kd.datasets import base, table
from nnunet_kd.datasets.options import options_of
from tests.datasets import layouts
from tests.datasets.converting import read


@pytest.fixture
def hearts():
    """The class in the module's docstring."""
    lines = base.__doc__.split("::\n", 1)[1].split("\n``nnunet_kd dataset Hearts2030")[0]
    names = {"__name__": "hearts2030"}
    exec(textwrap.dedent(lines), names)
    return names["Hearts2030"]


@pytest.mark.parametrize("words", [[], ["--wall"]])
def test_the_example_is_all_there_is_to_it(tmp_path, monkeypatch, capsys, hearts, words):
    for name in ("a", "b"):
        layouts.write(layouts.volume(layouts.brain(1)), tmp_path / "source" / "images" / f"{name}.nii.gz")
        layouts.write(layouts.volume(layouts.labels((1, 2))), tmp_path / "source" / "masks" / f"{name}.nii.gz")
    monkeypatch.setitem(table.DATASETS, hearts.name, hearts)
    arguments = [hearts.name, str(tmp_path / "source"), "--raw", str(tmp_path / "raw"), "-np", "1"]
    assert main(["dataset", *arguments, *words]) == 0
    folder = tmp_path / "raw" / "Dataset512_Hearts2030"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    values = set(np.unique(read(folder / "labelsTr" / "a.nii.gz")[0]).tolist())
    assert values == set(labels.values()) == ({0, 1, 2} if words else {0, 1})
    assert len(options_of(hearts)) == 1
    (tmp_path / "source" / "masks" / "b.nii.gz").unlink()
    assert main(["dataset", *arguments, "-d", "600"]) == 1
    assert "b: there is no mask of" in capsys.readouterr().err


def test_the_command_explains_its_option_and_lists_it(monkeypatch, capsys, hearts):
    monkeypatch.setitem(table.DATASETS, hearts.name, hearts)
    with pytest.raises(SystemExit):
        main(["dataset", "--help"])
    assert "Hearts2030: label the wall of the ventricle too" in " ".join(capsys.readouterr().out.split())
    assert main(["dataset", "--list"]) == 0
    assert "512  Hearts2030" in capsys.readouterr().out
