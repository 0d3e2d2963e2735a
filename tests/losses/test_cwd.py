import math

import pytest
import torch

from nnunet_kd.losses import CWDLoss
from tests.losses.random_maps import SHAPES, random_maps, random_valid


def literal(student, teacher, temperature, valid):
    """Shu et al., eq. 2-4, channel by channel and voxel by voxel."""
    total = 0.0
    batch, channels = student.shape[:2]
    for image in range(batch):
        used = valid[image].flatten()
        for channel in range(channels):
            s, t = (maps[image, channel].flatten()[used] / temperature for maps in (student, teacher))
            q, p = ([math.exp(z) for z in logits] for logits in (s, t))
            total += sum(
                x / sum(p) * math.log((x / sum(p)) / (y / sum(q))) for x, y in zip(p, q, strict=True) if sum(p)
            )
    return temperature**2 * total / (batch * channels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_literal_equation(shape):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 3, 1)
    everywhere = torch.ones(2, 1, *shape, dtype=torch.bool)
    assert CWDLoss()(student, teacher).item() == pytest.approx(literal(student, teacher, 4, everywhere), rel=1e-10)
    valid = random_valid(shape)
    expected = literal(student, teacher, 1, valid)
    assert CWDLoss(1)(student, teacher, valid=valid).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher = random_maps(shape, 3, 0)
    assert CWDLoss()(teacher.clone(), teacher) == 0
    assert CWDLoss()(teacher + random_maps(shape, 3, 1), teacher) > 0


def test_a_constant_added_to_a_channel_changes_nothing():
    student, teacher = random_maps((5, 6, 7), 3, 0), random_maps((5, 6, 7), 3, 1)
    shift = torch.tensor([5.0, -3.0, 100.0], dtype=torch.float64).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(CWDLoss()(student + shift, teacher), CWDLoss()(student, teacher))


def test_ignored_voxels_do_not_matter():
    student, teacher, valid = random_maps((5, 6, 7), 3, 0), random_maps((5, 6, 7), 3, 1), random_valid((5, 6, 7))
    loss = CWDLoss()
    elsewhere = torch.where(valid, student, 1e4)
    torch.testing.assert_close(loss(elsewhere, teacher, valid=valid), loss(student, teacher, valid=valid))
    student.requires_grad_()
    nothing = loss(student, teacher, valid=torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0 and student.grad.abs().max() == 0


@pytest.mark.parametrize("temperature", [0.01, 0.2, 100])
def test_masked_voxels_are_finite_at_any_temperature(temperature):
    student, teacher, valid = random_maps((5, 6), 3, 0, torch.float32), random_maps((5, 6), 3, 1), random_valid((5, 6))
    student.requires_grad_()
    value = CWDLoss(temperature)(student, teacher.float(), valid=valid)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


def test_gradient_reaches_the_student_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 3, 1).requires_grad_()
    CWDLoss()(student, teacher).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    student, teacher, valid = random_maps(shape, 3, 0).requires_grad_(), random_maps(shape, 3, 1), random_valid(shape)
    assert torch.autograd.gradcheck(lambda s: CWDLoss()(s, teacher, valid=valid), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 3, 1, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CWDLoss()(student, teacher, valid=random_valid((8, 9, 5)))
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    expected = CWDLoss()(student.float(), teacher.float(), valid=random_valid((8, 9, 5)))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("temperature", [0, -1, True, "3", float("nan")])
def test_option_errors(temperature):
    with pytest.raises(ValueError, match="temperature must be a number above 0, got"):
        CWDLoss(temperature)


@pytest.mark.parametrize("temperature", [1e-4, 1001, 1e30, 1e200])
def test_temperatures_at_which_single_precision_has_no_digits_left_are_refused(temperature):
    """At 1e5 the value was off by several times its size, at 1e30 it was NaN."""
    with pytest.raises(ValueError, match="temperature must be from 0.001 to 1000, got|within single precision"):
        CWDLoss(temperature)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 8, 8), (2, 4, 8, 8), "student has 3 classes, teacher 4"),
        ((2, 3, 8, 8), (2, 3, 8, 9), r"student logits lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((2, 3, 8), (2, 3, 8), r"expected student logits \(B, C, \*spatial\) in 2-D or 3-D"),
    ],
)
def test_input_errors(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        CWDLoss()(torch.zeros(student), torch.zeros(teacher))
