import pytest
import torch

from nnunet_kd.losses.stacked_bands import PARTED, StackedBands
from nnunet_kd.wavelets import band_names, dwt
from tests.losses.random_maps import random_maps

SHAPES = [(4, 6, 8), (6, 8), (5, 6, 7), (1, 4, 9), (32, 32, 34), (130, 128)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_bands_are_those_of_the_transform(shape, wavelet):
    features = random_maps(shape, 3, 0)
    bands, expected = StackedBands(features, wavelet, torch.float64), dwt(features, wavelet)
    assert bands.data.shape[1] == (bands.coarse[0] if wavelet == "haar" and bands.coarse.numel() >= PARTED else 1)
    torch.testing.assert_close(bands.approximation, expected.approximation)
    names = band_names(len(shape))[1:]
    assert bands.sizes() == [tuple(expected.details[0][name].shape[2:]) for name in names]
    places = bands.places()
    count = bands.details.shape[2] * len(bands.details) // 2 if places is None else int(places.sum()) // 2
    assert count == sum(band[0, 0].numel() for band in expected.details[0].values())
    for data, name in zip(bands.data[1:], names, strict=True):
        torch.testing.assert_close(data.square().sum(), expected.details[0][name].square().sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("exchanged", [False, True])
def test_the_way_back(shape, wavelet, exchanged):
    features = random_maps(shape, 3, 0)
    features = features.transpose(2, 3) if exchanged else features  # any strides
    out = torch.empty_like(features)
    assert StackedBands(features, wavelet, torch.float64).back(out) is out
    torch.testing.assert_close(out, features)


def test_features_of_half_precision_are_transformed_in_single_precision():
    features = random_maps((4, 6, 8), 3, 0, torch.float16)
    bands, expected = (
        StackedBands(features, "haar", torch.float32),
        StackedBands(features.float(), "haar", torch.float32),
    )
    assert torch.equal(bands.data, expected.data) and bands.data.dtype == torch.float32
