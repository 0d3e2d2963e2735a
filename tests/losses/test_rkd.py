"""Relational distillation; ``rkd.npz`` holds inputs, outputs and gradients of ``metric/loss.py`` of lenscloth/RKD at
0a6c3c0, in float32 on a CPU."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_kd.losses import RKDLoss
from tests.losses.random_maps import SHAPES, random_maps

RECORDED = np.load(Path(__file__).with_name("rkd.npz"))


def recorded(name):
    return torch.from_numpy(RECORDED[name])


def huber(a, b):
    error = abs(a - b)
    return 0.5 * error**2 if error < 1 else error - 0.5


def literal(student, teacher, distance_weight, angle_weight):
    """One pair and one triplet of embeddings after the other."""

    def relations(points):
        points = [list(map(float, point)) for point in points]
        distances = {(i, j): math.dist(points[i], points[j]) for i in range(count) for j in range(count)}
        positive = [distance for distance in distances.values() if distance > 0]
        mean = sum(positive) / len(positive)
        angles = {}
        for i, j, k in itertools.product(range(count), repeat=3):
            product = sum((b - a) * (c - a) for a, b, c in zip(points[i], points[j], points[k], strict=True))
            both = distances[i, j] * distances[i, k]
            angles[i, j, k] = product / both if both else 0.0
        return {pair: distance / mean for pair, distance in distances.items()}, angles

    count = len(student)
    ours, theirs = relations(student), relations(teacher)
    parts = [sum(huber(a[key], b[key]) for key in a) / len(a) for a, b in zip(ours, theirs, strict=True)]
    return distance_weight * parts[0] + angle_weight * parts[1]


def boxes(maps, parts):
    """The mean features of every box, image by image; the sides must be multiples of ``parts``."""
    found = []
    for image in maps:
        pieces = [image]
        for axis in range(1, image.ndim):
            pieces = [part for piece in pieces for part in piece.chunk(parts, axis)]
        found += [piece.flatten(1).mean(1) for piece in pieces]
    return found


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize(("term", "weights"), [("distance", (1, 0)), ("angle", (0, 1))])
def test_equals_the_authors_code(case, term, weights):
    student = recorded(f"{case}_student")[:, :, None, None].requires_grad_()
    value = RKDLoss(*weights, parts=1)(student, recorded(f"{case}_teacher")[:, :, None, None])
    value.backward()
    torch.testing.assert_close(value, recorded(f"{case}_{term}"), rtol=1e-5, atol=0)
    gradient = recorded(f"{case}_{term}_gradient")
    scale = gradient.abs().max().item()
    torch.testing.assert_close(student.grad[:, :, 0, 0], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("shape", [(4, 6, 2), (2, 2, 2), (6, 4)], ids=str)
def test_equals_the_literal_equation(shape):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 5, 1)
    expected = literal(boxes(student, 2), boxes(teacher, 2), 25, 50)
    assert RKDLoss()(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher = random_maps(shape, 4, 0)
    assert RKDLoss()(teacher.clone(), teacher) == 0
    assert RKDLoss()(random_maps(shape, 4, 1), teacher) > 0


def test_scaling_shifting_and_rotating_all_features_changes_nothing():
    student, teacher = random_maps((4, 5, 6), 3, 0), random_maps((4, 5, 6), 8, 1)
    rotation = torch.linalg.qr(random_maps((3, 3), 1, 2)[0, 0])[0]
    changed = 7 * torch.einsum("ij,bjzyx->bizyx", rotation, student) + torch.arange(3.0).view(3, 1, 1, 1)
    torch.testing.assert_close(RKDLoss()(changed, teacher), RKDLoss()(student, teacher))


def test_two_embeddings_have_nothing_to_compare():
    """Their distance is the mean distance, so the authors' loss is 0 for any two networks."""
    message = "relations need three embeddings, got 2: a batch of 2 with 1 boxes each"
    with pytest.raises(ValueError, match=message):
        RKDLoss(parts=1)(random_maps((4, 4, 4), 3, 0), random_maps((4, 4, 4), 5, 1))
    assert RKDLoss(parts=2)(random_maps((4, 4, 4), 3, 0), random_maps((4, 4, 4), 5, 1)) > 0


def test_equal_embeddings_have_no_gradient():
    """They have neither a distance nor a direction; through eps their gradient would be of the order of 1e12."""
    student = torch.ones(2, 3, 4, 4, requires_grad=True)
    value = RKDLoss()(student, random_maps((4, 4), 3, 0, torch.float32))
    value.backward()
    assert value > 0 and student.grad.abs().max() == 0
    one_differs = torch.ones(2, 3, 4, 4)
    one_differs[0, :, 0, 0] = 2
    one_differs.requires_grad_()
    RKDLoss()(one_differs, random_maps((4, 4), 3, 0, torch.float32)).backward()
    assert 0 < one_differs.grad.abs().max() < 1e3


def test_gradient_reaches_the_student_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 8, 1).requires_grad_()
    RKDLoss()(student, teacher).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    student, teacher = random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1)
    assert torch.autograd.gradcheck(lambda s: RKDLoss()(s, teacher), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = RKDLoss()(student, teacher)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, RKDLoss()(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance_weight": -1}, "distance_weight must be a number of at least 0, got -1"),
        ({"angle_weight": "x"}, "angle_weight must be a number of at least 0, got 'x'"),
        ({"distance_weight": 0, "angle_weight": 0}, "distance_weight and angle_weight are both 0: give one of them"),
        ({"parts": 0}, "parts must be a positive integer, got 0"),
        ({"parts": 5}, "parts must be at most 4, got 5"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        RKDLoss(**options)


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
        RKDLoss()(torch.zeros(student), torch.zeros(teacher))
