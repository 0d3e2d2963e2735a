"""Wherever a conversion is killed, no half data set is left, and the next conversion makes it."""

import pytest

from tests.datasets import layouts
from tests.killing import needs_fork
from tests.survival import convert

pytestmark = needs_fork


@pytest.mark.parametrize(
    ("name", "layout", "workers", "kills"), [("ISLES2022", layouts.isles2022, 1, 6), ("BUSI", layouts.busi, 2, 3)]
)
def test_random_kills(tmp_path, name, layout, workers, kills):
    convert(tmp_path, name, layout, workers).survives_random_kills(kills)


def test_kills_at_every_rename(tmp_path):
    """The description, the splits here and where nnU-Net looks for them, then the folder."""
    assert convert(tmp_path, "TCGALGG", layouts.tcga_lgg, 1).survives_kills_at_renames() == 4
