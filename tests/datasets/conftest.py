"""Every data set of the papers, converted once."""

import pytest

from tests.datasets import layouts
from tests.datasets.converting import convert


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The folder of all sources, with all data sets in one ``nnUNet_raw``, and name -> what was made."""
    root = tmp_path_factory.mktemp("datasets")
    made = {}
    for name, layout in layouts.LAYOUTS.items():
        source = root / name
        source.mkdir()
        layout(source)
        made[name] = convert(name, source, root / "nnUNet_raw")
    return root, made
