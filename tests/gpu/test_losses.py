"""Losses on the device beside the CPU's float64."""

import pytest
import torch

from tests.gpu.agreement import cosine, error
from tests.gpu.place import copied, exact_products
from tests.gpu.problems import PLANE_ONLY, PROBLEMS

CASES = [(name, dim) for name in PROBLEMS for dim in (2, 3) if dim == 2 or name not in PLANE_ONLY]


@pytest.mark.parametrize(("name", "dim"), CASES, ids=[f"{name} in {dim}-D" for name, dim in CASES])
def test_a_loss(place, figures, name, dim):
    """In float32, and on float16 inputs under autocast, value and gradients are those of float64."""
    grid = place.size({2: (96, 81), 3: (40, 33, 36)}, {2: (17, 12), 3: (8, 9, 10)})[dim]
    problem = PROBLEMS[name](grid)
    with exact_products():
        _compare(place, figures, problem, torch.float32)
        with place.autocast():
            _compare(place, figures, problem, torch.float16)


def _compare(place, figures, problem, dtype):
    """Compare with the CPU's float64 on the same numbers, rounded to the type of the inputs."""
    kind = str(dtype).removeprefix("torch.")
    rounded = [copied(tensor, "cpu", dtype) for tensor in problem.tensors]
    doubles = [copied(tensor, "cpu", torch.float64) for tensor in rounded]
    with torch.autocast("cpu", enabled=False), torch.autocast(place.device.type, enabled=False):
        expected, expected_gradients = problem.solve(copied(problem.adapter, "cpu", torch.float64), doubles)
    tensors = [place.copied(tensor, dtype) for tensor in rounded]
    value, gradients = problem.solve(place.copied(problem.adapter, torch.float32), tensors)
    assert value.device.type == place.device.type and value.dtype == torch.float32
    figures[f"{kind} value error"] = error(value, expected)
    figures[f"{kind} gradient error"] = error(gradients, expected_gradients)
    figures[f"{kind} gradient cosine"] = cosine(gradients, expected_gradients)
    assert figures[f"{kind} value error"] < 1e-4
    half = dtype == torch.float16  # gradients of float16 inputs are rounded to float16
    assert figures[f"{kind} gradient error"] < (3e-2 if half else 1e-3)
    assert figures[f"{kind} gradient cosine"] > (0.999 if half else 0.999999)
