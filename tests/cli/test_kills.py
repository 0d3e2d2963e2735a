"""Soft labels are complete or absent after a kill at any moment, and --continue makes the rest."""

import pytest
import torch

from tests.killing import needs_fork
from tests.small_networks import tiny_sam
from tests.survival import store

pytestmark = needs_fork


@pytest.fixture
def weights(workspace):
    torch.manual_seed(0)
    path = workspace.root / "sam.pth"
    torch.save(tiny_sam().state_dict(), path)
    return path


@pytest.mark.slow
def test_random_kills(workspace, weights):
    store(workspace, weights).survives_random_kills(6, different=3)


def test_kills_at_every_rename(workspace, weights):
    """The renames are those of the manifest, and of the data and record of each case of a part."""
    assert store(workspace, weights, "-num_parts", "3").survives_kills_at_renames() == 5
