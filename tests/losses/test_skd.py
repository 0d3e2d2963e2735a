"""Structured distillation; ``skd.npz`` holds inputs, outputs and gradients, in float32 on a CPU, of
irfanICMLL/structure_knowledge_distillation at ce208e1 (liu) and of ``losses/skd.py`` of winycg/CIRKD at dab64db
(window)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.losses import SKDLoss, chunks
from tests.losses.random_maps import SHAPES, random_maps

RECORDED = np.load(Path(__file__).with_name("skd.npz"))
CODES = {"liu": {"nodes": 2, "detach_norms": True}, "window": {"window": 2}}


def recorded(name):
    return torch.from_numpy(RECORDED[name])


def literal(student, teacher, window, pooling):
    """One image, one pair of nodes after the other."""
    total = 0.0
    for image in range(len(student)):
        affinities = []
        for maps in (student, teacher):
            pieces = [maps[image]]
            for axis in range(1, maps.ndim - 1):
                pieces = [part for piece in pieces for part in piece.split(window, axis)]
            flat = [piece.flatten(1) for piece in pieces]
            nodes = [one.amax(1) if pooling == "max" else one.mean(1) for one in flat]
            affinities.append([[F.cosine_similarity(a, b, dim=0) for b in nodes] for a in nodes])
        ours, theirs = (torch.tensor(one) for one in affinities)
        total += ((ours - theirs) ** 2).mean().item()
    return total / len(student)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("code", CODES)
def test_equals_the_authors_code(case, code):
    student = recorded(f"{case}_student").requires_grad_()
    value = SKDLoss(**CODES[code])(student, recorded(f"{case}_teacher"))
    value.backward()
    torch.testing.assert_close(value, recorded(f"{case}_{code}"), rtol=1e-5, atol=0)
    gradient = recorded(f"{case}_{code}_gradient")
    torch.testing.assert_close(student.grad, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize(("shape", "widths"), [((4, 5, 3), (2, 3)), ((4, 5, 3), (9, 9)), ((5, 6), (2, 3))], ids=str)
def test_equals_the_literal_equation(shape, widths, pooling):
    """With few channels, from the products of channels; with many, from those of nodes."""
    student, teacher = random_maps(shape, widths[0], 0), random_maps(shape, widths[1], 1)
    value = SKDLoss(pooling=pooling)(student, teacher)
    assert value.item() == pytest.approx(literal(student, teacher, 2, pooling), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher = random_maps(shape, 4, 0)
    assert SKDLoss()(teacher.clone(), teacher) == 0
    assert SKDLoss()(random_maps(shape, 4, 1), teacher) > 0


def test_the_size_of_a_windows_features_does_not_matter():
    student, teacher = random_maps((4, 6, 8), 3, 0), random_maps((4, 6, 8), 8, 1)
    size = 0.1 + random_maps((2, 3, 4), 1, 2).abs()
    changed = student * size.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(SKDLoss()(changed, teacher), SKDLoss()(student, teacher))


def test_detached_norms_change_the_gradient_alone():
    student, teacher = random_maps((4, 6), 3, 0).requires_grad_(), random_maps((4, 6), 8, 1)
    values = [SKDLoss(detach_norms=detached)(student, teacher) for detached in (False, True)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert values[0] == values[1] and not torch.allclose(*gradients)
    along = [(gradient * student).sum().abs() for gradient in gradients]  # towards larger features
    assert along[0] < 1e-12 < 1e-3 < along[1]


def test_features_of_zero_stay_finite():
    for detached in (False, True):
        student = torch.zeros(1, 3, 4, 4, requires_grad=True)
        value = SKDLoss(detach_norms=detached)(student, random_maps((4, 4), 3, 0, torch.float32, 1))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(student.grad).all() and student.grad.abs().max() == 0


def test_large_maps_are_pooled_case_by_case(monkeypatch):
    student, teacher = random_maps((4, 6, 8), 3, 0).requires_grad_(), random_maps((4, 6, 8), 8, 1)
    expected = SKDLoss()(student, teacher)
    gradient = torch.autograd.grad(expected, student)[0]
    monkeypatch.setattr(chunks, "LARGE", 100)
    value = SKDLoss()(student, teacher)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], gradient)


def test_gradient_reaches_the_student_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 8, 1).requires_grad_()
    SKDLoss()(student, teacher).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


@pytest.mark.parametrize("options", [{}, {"pooling": "average", "nodes": 3}], ids=str)
@pytest.mark.parametrize(("shape", "width"), [((4, 2, 3), 2), ((4, 5), 1), ((4, 3), 6)], ids=str)
def test_gradcheck(shape, width, options):
    student, teacher = random_maps(shape, width, 0).requires_grad_(), random_maps(shape, width + 1, 1)
    assert torch.autograd.gradcheck(lambda s: SKDLoss(**options)(s, teacher), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SKDLoss()(student, teacher)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, SKDLoss()(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"nodes": 2.5}, "nodes must be a positive integer, got 2.5"),
        ({"nodes": 2000}, "nodes must be at most 1024, got 2000"),
        ({"pooling": "mean"}, "pooling must be 'max' or 'average', got 'mean'"),
        ({"detach_norms": 1}, "detach_norms must be true or false, got 1"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SKDLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 9), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((1, 3, 8, 8), (2, 3, 8, 8), "student has batch size 1, teacher 2"),
        ((2, 3, 8), (2, 3, 8), r"expected student features \(B, C, \*spatial\) in 2-D or 3-D"),
    ],
)
def test_input_errors(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        SKDLoss()(torch.zeros(student), torch.zeros(teacher))
