import math

import pytest
import torch

from nnunet_kd.losses import LogitsKDLoss
from tests.losses.random_maps import SHAPES, random_maps, random_valid


def literal(student, teacher, temperature, regions, valid):
    """Hinton et al., section 2, voxel by voxel and class by class."""
    total, count = 0.0, 0
    for image in range(student.shape[0]):
        for s, t, used in zip(
            student[image].flatten(1).t(), teacher[image].flatten(1).t(), valid[image].flatten(), strict=True
        ):
            if not used:
                continue
            count += 1
            if regions:
                for a, b in zip(s, t, strict=True):
                    p, q = (1 / (1 + math.exp(-z / temperature)) for z in (b, a))
                    total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            else:
                p, q = ([math.exp(z / temperature) for z in logits] for logits in (t, s))
                p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
                total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return temperature**2 * total / max(count, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_equals_the_literal_equation(shape, regions):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 3, 1)
    everywhere = torch.ones(2, 1, *shape, dtype=torch.bool)
    expected = literal(student, teacher, 3, regions, everywhere)
    assert LogitsKDLoss()(student, teacher, regions).item() == pytest.approx(expected, rel=1e-10)
    valid = random_valid(shape)
    expected = literal(student, teacher, 1.5, regions, valid)
    assert LogitsKDLoss(1.5)(student, teacher, regions, valid).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape, regions):
    teacher = random_maps(shape, 3, 0)
    assert LogitsKDLoss()(teacher.clone(), teacher, regions) == 0
    assert LogitsKDLoss()(teacher + random_maps(shape, 3, 1), teacher, regions) > 0


def test_a_constant_added_to_all_classes_of_a_voxel_changes_nothing():
    student, teacher = random_maps((5, 6, 7), 3, 0), random_maps((5, 6, 7), 3, 1)
    shifted = LogitsKDLoss()(student + random_maps((5, 6, 7), 1, 2), teacher + random_maps((5, 6, 7), 1, 3))
    torch.testing.assert_close(shifted, LogitsKDLoss()(student, teacher))


def test_two_classes_are_one_region():
    student, teacher = random_maps((6, 5), 1, 0), random_maps((6, 5), 1, 1)
    both = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    torch.testing.assert_close(LogitsKDLoss()(*both), LogitsKDLoss()(student, teacher, regions=True))


def test_the_size_of_the_gradient_hardly_depends_on_the_temperature():
    """What T^2 is for: in the limit of high temperatures the gradient is (z_s - z_t) / classes."""
    sizes = []
    for temperature in (20.0, 200.0):
        student, teacher = random_maps((6, 6), 3, 0).requires_grad_(), random_maps((6, 6), 3, 1)
        LogitsKDLoss(temperature)(student, teacher).backward()
        sizes.append(student.grad.norm())
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.05, atol=0)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_ignored_voxels_do_not_matter(regions):
    student, teacher, valid = random_maps((5, 6, 7), 3, 0), random_maps((5, 6, 7), 3, 1), random_valid((5, 6, 7))
    elsewhere = torch.where(valid, student, 1e4)
    loss = LogitsKDLoss()
    torch.testing.assert_close(loss(elsewhere, teacher, regions, valid), loss(student, teacher, regions, valid))
    student.requires_grad_()
    nothing = loss(student, teacher, regions, torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0 and student.grad.abs().max() == 0


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_extreme_logits_stay_finite(regions):
    student = torch.tensor([[[[500.0, -500.0]], [[-500.0, 500.0]]]]).requires_grad_()
    value = LogitsKDLoss(1)(student, -student.detach(), regions)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


def test_gradient_reaches_the_student_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 3, 1).requires_grad_()
    LogitsKDLoss()(student, teacher).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape, regions):
    student, teacher = random_maps(shape, 3, 0).requires_grad_(), random_maps(shape, 3, 1)
    valid = random_valid(shape)
    assert torch.autograd.gradcheck(lambda s: LogitsKDLoss()(s, teacher, regions, valid), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 3, 1, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LogitsKDLoss()(student, teacher)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, LogitsKDLoss()(student.float(), teacher.float()))


@pytest.mark.parametrize("temperature", [0, -1, True, "3", float("inf"), float("nan")])
def test_option_errors(temperature):
    with pytest.raises(ValueError, match=r"temperature must be a number above 0, got"):
        LogitsKDLoss(temperature)


@pytest.mark.parametrize("temperature", [1e-4, 1001, 1e30, 1e200])
def test_temperatures_at_which_single_precision_has_no_digits_left_are_refused(temperature):
    """At 1e5 the value was off by several times its size, at 1e30 it was NaN."""
    with pytest.raises(ValueError, match="temperature must be from 0.001 to 1000, got|within single precision"):
        LogitsKDLoss(temperature)


@pytest.mark.parametrize(
    ("student", "teacher", "valid", "message"),
    [
        ((2, 3, 8, 8), (2, 4, 8, 8), None, "student has 3 classes, teacher 4"),
        ((2, 3, 8, 8), (2, 3, 8, 9), None, r"student logits lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((1, 3, 8, 8), (2, 3, 8, 8), None, "student has batch size 1, teacher 2"),
        ((2, 3, 8), (2, 3, 8), None, r"expected student logits \(B, C, \*spatial\) in 2-D or 3-D"),
        ((2, 3, 8, 8), (2, 3, 8, 8), torch.ones(2, 1, 4, 4, dtype=torch.bool), r"valid must be boolean \(2, 1, 8, 8\)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), torch.ones(2, 1, 8, 8), "valid must be boolean .*, got torch.float32"),
    ],
)
def test_input_errors(student, teacher, valid, message):
    with pytest.raises(ValueError, match=message):
        LogitsKDLoss()(torch.zeros(student), torch.zeros(teacher), valid=valid)
