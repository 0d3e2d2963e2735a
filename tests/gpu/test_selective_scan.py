# ruff: noqa: N806  A, B and C are the paper's names
"""The selective scan, and the kernel of mamba-ssm, on the device beside the CPU's float64."""

import time
from statistics import median

import pytest
import torch

from nnunet_kd.networks.selective_scan import chunked_scan, installed_kernel, selective_scan
from tests.gpu.agreement import error, worst_error


def sequences(batch, channels, length, groups=4, state=16):
    """Sequences with the step sizes and decays that Mamba starts from."""
    generator = torch.Generator().manual_seed(0)
    B, C = torch.randn(2, batch, groups, state, length, generator=generator)
    return [
        torch.randn(batch, channels, length, generator=generator),
        1e-3 * 100 ** torch.rand(batch, channels, length, generator=generator),
        -torch.arange(1.0, state + 1).repeat(channels, 1),
        B,
        C,
    ]


def solved(scan, given, device, dtype):
    """Return the result of a scan and its gradients."""
    inputs = [tensor.detach().to(device, dtype).requires_grad_() for tensor in given]
    y = scan(*inputs)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y, torch.autograd.grad((y * weights).sum(), inputs)


def milliseconds(place, scan, given):
    """The median time of a forward and a backward pass."""
    times = []
    for _ in range(place.size(10, 3)):
        place.wait()
        start = time.perf_counter()
        solved(scan, given, place.device, torch.float32)
        place.wait()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1024])
def test_scan(place, figures, length):
    given = sequences(2, place.size(192, 16), length)
    expected, expected_gradients = solved(chunked_scan, given, "cpu", torch.float64)
    y, gradients = solved(chunked_scan, given, place.device, torch.float32)
    figures["value error"] = error(y, expected)
    figures["worst gradient error"] = worst_error(gradients, expected_gradients)
    assert figures["value error"] < 1e-5 and figures["worst gradient error"] < 1e-4


def test_kernel_of_mamba_ssm(place, figures):
    """The kernel gives the same as our scan, and both are timed."""
    kernel = installed_kernel()
    if kernel is None and not place.fake:
        pytest.skip("mamba-ssm is not installed with its kernel")
    given = sequences(2, place.size(768, 16), place.size(4096, 128))
    y, gradients = solved(chunked_scan, given, place.device, torch.float32)
    other, other_gradients = solved(selective_scan, given, place.device, torch.float32)
    figures["value error"] = error(other, y)
    figures["worst gradient error"] = worst_error(other_gradients, gradients)
    figures["scan ms"] = milliseconds(place, chunked_scan, given)
    figures["kernel ms"] = milliseconds(place, selective_scan, given)
    assert figures["value error"] < 1e-4 and figures["worst gradient error"] < 1e-3


def test_scan_in_mixed_precision(place, figures):
    """The scan of float16 sequences under autocast is computed in float32, and rounded once."""
    given = [tensor.half().float() for tensor in sequences(1, place.size(192, 16), place.size(4096, 128))]
    expected = chunked_scan(*(tensor.double() for tensor in given))
    with place.autocast(), torch.no_grad():
        y = selective_scan(*(tensor.to(place.device, torch.float16) for tensor in given))
    assert y.dtype == torch.float16
    figures["value error"] = error(y, expected)
    assert figures["value error"] < 1e-3
