import itertools

import pytest
import torch

from nnunet_kd.losses.wavelet_details import Selection, WaveletDetails
from nnunet_kd.wavelets import project_details, select_bands, selected_components
from tests.losses.random_maps import random_maps

BANDS = ("directional", "lll", "hhh", "detail", "all")
SHAPES = [(12, 9, 15), (24, 17, 30), (4, 4, 4), (1, 30, 29), (33, 40), (7, 6)]  # some with more than 512 voxels


def select(bands, shape, factors=(1.0, 1.0, 1.0), each_level=False):
    return Selection("db2", select_bands(bands, len(shape)), each_level, factors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_energies_are_those_of_the_components_times_the_factors(shape):
    features, factors = random_maps(shape, 3, 0), (1.0, 3.0, 0.5)
    for bands, each_level in itertools.product(BANDS, (False, True)):
        found = WaveletDetails(features, select(bands, shape, factors, each_level)).components
        levels = selected_components(features, "db2", 3, bands, each_level)
        energies = [sum(part.square().sum() for part in level) for level in levels]
        expected = energies[0] + 9 * energies[1] + 2.25 * energies[2]
        torch.testing.assert_close(sum(part.square().sum() for part in found) + 0 * features.sum(), expected)
        assert all(part.ndim == 3 and part.shape[1] == 3 for part in found)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_way_there_and_back_is_the_projection(shape):
    features = random_maps(shape, 3, 0)
    for bands in BANDS:
        if bands == "hhh" and 1 in shape:
            continue  # nothing is selected
        details = WaveletDetails(features, select(bands, shape))
        before = features.clone()
        torch.testing.assert_close(details.back(), project_details(features, "db2", 3, bands))
        assert torch.equal(features, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_way_back_is_the_transpose(shape):
    """With factors, and where the approximation is a component and goes on as well."""
    features, other = random_maps(shape, 3, 0), random_maps(shape, 3, 1)
    for bands in ("directional", "all", "lll"):
        selection = select(bands, shape, (1.0, 3.0, 0.5), each_level=True)
        ours, theirs = (WaveletDetails(x, selection) for x in (features, other))
        expected = sum((a * b).sum() for a, b in zip(ours.components, theirs.components, strict=True))
        torch.testing.assert_close((features * theirs.back()).sum(), expected)
