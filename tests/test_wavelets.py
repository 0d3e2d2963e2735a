import itertools

import numpy as np
import ptwt
import pytest
import pywt
import torch

from nnunet_kd.wavelets import (
    analysis_matrix,
    band_names,
    dwt,
    idwt,
    project_details,
    select_bands,
    selected_components,
)

WAVELETS = ("haar", "db2", "db4", "sym4")
BANDS = ("directional", "lll", "hhh", "detail", "all")
# Together these hold every length from 2 to 64 along some axis, and more odd and non-cubic shapes.
VOLUMES = [(n, 66 - n, 2 + n % 7) for n in range(2, 65, 2)] + [(n, 5, 3) for n in range(3, 65, 2)]
IMAGES = [(n, 66 - n) for n in range(2, 65)]
SOME = [(2, 2, 2), (3, 5, 7), (8, 8, 8), (12, 9, 15), (10, 14, 10), (17, 4, 31), (1, 9, 8), (33, 20), (64, 7), (5, 5)]


def random(shape, dtype=torch.float64):
    return torch.randn(1, 2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("wavelet", [*WAVELETS, "coif3", "db20", "dmey"])
def test_every_matrix_is_orthonormal(wavelet):
    for length in range(1, 65):
        matrix = analysis_matrix(length, wavelet)
        assert torch.allclose(matrix @ matrix.T, torch.eye(length, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_perfect_reconstruction(wavelet, levels):
    for shape in VOLUMES + IMAGES:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            x = random(shape, dtype)
            assert (idwt(dwt(x, wavelet, levels)) - x).abs().max() < tolerance, shape


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_projection_is_idempotent_and_symmetric(wavelet, levels):
    for shape, bands in itertools.product(SOME, BANDS):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            x, y = random(shape, dtype), random(shape, dtype).flip(2)
            projected = project_details(x, wavelet, levels, bands)
            assert projected.shape == x.shape
            assert (project_details(projected, wavelet, levels, bands) - projected).abs().max() < tolerance
            left = (projected * y).sum()
            right = (x * project_details(y, wavelet, levels, bands)).sum()
            assert (left - right).abs() < tolerance * x.norm() * y.norm()


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("bands", BANDS)
def test_energy_needs_no_inverse(bands, levels):
    for shape, wavelet, dtype in itertools.product([*SOME, (24, 17, 30)], WAVELETS, (torch.float32, torch.float64)):
        x = random(shape, dtype)
        literal = project_details(x, wavelet, levels, bands).square().sum()
        components = selected_components(x, wavelet, levels, bands)
        energy = sum(part.square().sum() for level in components for part in level)
        assert abs(energy - literal) <= 1e-5 * max(literal, 1e-3), (shape, wavelet)


def test_energy_of_a_small_detail_on_a_large_smooth_signal():
    """Subtracting energies would lose this one: the details are 1e-8 of the whole."""
    smooth = 100 + torch.linspace(0, 1, 24).cos().view(-1, 1, 1) * torch.ones(24, 20, 16)
    x = (smooth + 0.01 * random((24, 20, 16))[0, 0])[None, None]
    exact = project_details(x.double()).square().sum()
    energy = sum(part.square().sum() for level in selected_components(x.float()) for part in level)
    assert abs(energy - exact) < 1e-3 * exact


@pytest.mark.parametrize("each_level", [False, True])
def test_one_matrix_for_small_tensors_changes_nothing(each_level, monkeypatch):
    from nnunet_kd import wavelets

    for shape, bands in itertools.product([(8, 8, 8), (5, 7, 5), (4, 4, 4), (20, 21)], BANDS):
        x = random(shape)
        keep = select_bands(bands, len(shape))
        dense = wavelets._components(x, "db4", 3, keep, each_level)
        steps = wavelets._components(x, "db4", 3, keep, each_level, dense=0)
        for a, b in zip(dense, steps, strict=True):
            difference = sum(p.square().sum() for p in a) - sum(p.square().sum() for p in b)
            assert abs(difference) < 1e-12 * x.square().sum()


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("shape", [(2, 4, 6), (8, 12, 10), (16, 32, 8), (64, 2), (10, 14)])
def test_pywavelets_agrees_on_even_axes(wavelet, shape):
    x = random(shape)
    ours = dwt(x, wavelet)
    theirs = pywt.dwtn(x.numpy(), wavelet, mode="periodization", axes=range(2, 2 + len(shape)))
    ours_by_name = {"a" * len(shape): ours.approximation, **ours.details[0]}
    assert set(ours_by_name) == set(theirs) == set(band_names(len(shape)))
    for name, band in theirs.items():
        np.testing.assert_allclose(ours_by_name[name].numpy(), band, atol=1e-10)


def test_pywavelets_agrees_over_levels():
    x = random((16, 8, 24))
    ours = dwt(x, "db2", levels=3)
    theirs = pywt.wavedecn(x.numpy(), "db2", mode="periodization", level=3, axes=(2, 3, 4))
    np.testing.assert_allclose(ours.approximation.numpy(), theirs[0], atol=1e-10)
    for level, expected in zip(ours.details, theirs[1:], strict=True):
        for name, band in expected.items():
            np.testing.assert_allclose(level[name].numpy(), band, atol=1e-10)


def test_ptwt_agrees_on_haar():
    x = random((8, 12, 16))
    approximation, details = ptwt.wavedec3(x, "haar", level=1, mode="zero")
    ours = dwt(x, "haar")
    torch.testing.assert_close(ours.approximation, approximation)
    for name, band in details.items():
        torch.testing.assert_close(ours.details[0][name], band)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_a_constant_has_no_details(wavelet):
    """At every level, including odd axes: only a constant in the coarsest band is left."""
    for shape in SOME:
        transformed = dwt(torch.full((1, 1, *shape), 3.0, dtype=torch.float64), wavelet, levels=3)
        for level in transformed.details:
            for band in level.values():
                assert not band.numel() or band.abs().max() < 1e-10
        assert transformed.approximation.std(unbiased=False) < 1e-10


def test_band_sizes_of_odd_axes():
    transformed = dwt(random((5, 8, 1)))
    assert transformed.approximation.shape == (1, 2, 3, 4, 1)
    assert transformed.details[0]["daa"].shape == (1, 2, 2, 4, 1)
    assert transformed.details[0]["aad"].numel() == 0


def test_gradient_is_the_projection():
    x = random((6, 9, 5)).requires_grad_()
    energy = sum(part.square().sum() for level in selected_components(x, levels=2) for part in level)
    (gradient,) = torch.autograd.grad(energy, x)
    torch.testing.assert_close(gradient, 2 * project_details(x.detach(), levels=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wavelet": "nonsense"}, "unknown wavelet 'nonsense'"),
        ({"wavelet": "bior4.4"}, "not orthogonal"),
        ({"levels": 0}, "levels must be a positive integer, got 0"),
        ({"levels": 1.5}, "levels must be a positive integer"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        dwt(torch.zeros(1, 1, 4, 4), **arguments)


def test_input_errors():
    with pytest.raises(ValueError, match="bands must be one of"):
        project_details(torch.zeros(1, 1, 4, 4), bands="some")
    with pytest.raises(ValueError, match="expected \\(B, C, \\*spatial\\)"):
        dwt(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="float32 or float64, got torch.float16"):
        dwt(torch.zeros(1, 1, 4, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="at least one sample"):
        analysis_matrix(0)


def test_cached_matrices_support_training():
    """Matrices first cached in inference mode, or with another default device, support gradients later."""
    x = torch.randn(1, 1, 22, 26)
    with torch.inference_mode():
        project_details(x, "sym3", 2)
    with torch.device("meta"):
        analysis_matrix(34, "sym3")
    wanted = torch.randn(1, 1, 22, 34, requires_grad=True)
    project_details(x.requires_grad_(), "sym3", 2).square().sum().backward()
    project_details(wanted, "sym3").square().sum().backward()
    assert x.grad.abs().sum() > 0 and wanted.grad.abs().sum() > 0
