import pytest
import torch

from nnunet_kd.losses import FitNetsLoss
from tests.losses.random_maps import SHAPES, random_maps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_literal_equation(shape):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 8, 1)
    phi = FitNetsLoss().projection(3, 8, len(shape)).double()
    total = 0.0
    for image in range(2):
        for channel in range(8):
            regressed = sum(phi.weight[channel, i].item() * student[image, i] for i in range(3)) + phi.bias[channel]
            total = total + ((regressed - teacher[image, channel]) ** 2).sum()
    torch.testing.assert_close(FitNetsLoss()(student, teacher, phi), total / teacher.numel())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher = random_maps(shape, 4, 0)
    assert FitNetsLoss()(teacher.clone(), teacher) == 0
    torch.testing.assert_close(FitNetsLoss()(teacher + 2, teacher).item(), 4.0)


def test_the_order_of_voxels_does_not_matter():
    student, teacher = random_maps((4, 5, 6), 3, 0), random_maps((4, 5, 6), 3, 1)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = [maps.flatten(2)[..., order].view_as(maps) for maps in (student, teacher)]
    torch.testing.assert_close(FitNetsLoss()(*shuffled), FitNetsLoss()(student, teacher))


def test_a_perfect_regression_can_be_learnt():
    student = random_maps((6, 6, 6), 3, 0)
    phi, truth = (FitNetsLoss().projection(3, 8, 3).double() for _ in range(2))
    teacher = truth(student).detach()
    optimizer = torch.optim.LBFGS(phi.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        value = FitNetsLoss()(student, teacher, phi)
        value.backward()
        return value

    optimizer.step(closure)
    assert closure() < 1e-8


def test_gradient_reaches_student_and_projection_only():
    student, teacher = random_maps((8, 6, 9), 3, 0).requires_grad_(), random_maps((8, 6, 9), 8, 1).requires_grad_()
    phi = FitNetsLoss().projection(3, 8, 3).double()
    FitNetsLoss()(student, teacher, phi).backward()
    assert student.grad is not None and phi.weight.grad is not None and phi.bias.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    student, teacher = random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1)
    phi = FitNetsLoss().projection(2, 4, len(shape)).double()
    assert torch.autograd.gradcheck(lambda s, *_: FitNetsLoss()(s, teacher, phi), (student, phi.weight, phi.bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    phi = FitNetsLoss().projection(3, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FitNetsLoss()(student, teacher, phi)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, FitNetsLoss()(student.float(), teacher.float(), phi))


@pytest.mark.parametrize(
    ("of_features", "of_adapter"), [(torch.float64, torch.float32), (torch.float32, torch.float16)]
)
def test_an_adapter_of_another_type_is_used_in_that_of_the_features(of_features, of_adapter):
    student, teacher = random_maps((4, 5), 3, 0, of_features), random_maps((4, 5), 8, 1, of_features)
    phi = FitNetsLoss().projection(3, 8, 2).to(of_adapter)
    value = FitNetsLoss()(student, teacher, phi)
    value.backward()
    assert value.dtype == of_features and phi.weight.grad.dtype == of_adapter
    torch.testing.assert_close(value, FitNetsLoss()(student, teacher, phi.to(of_features)))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 8, 8), (2, 4, 8, 8), "student has 3 channels, teacher 4: give a projection"),
        ((2, 3, 8, 8), (2, 3, 8, 9), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((1, 3, 8, 8), (2, 3, 8, 8), "student has batch size 1, teacher 2"),
        ((2, 3, 8), (2, 3, 8), r"expected student features \(B, C, \*spatial\) in 2-D or 3-D"),
    ],
)
def test_input_errors(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        FitNetsLoss()(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 1, 2), "the projection goes from 3 to 1 channels in 2-D, the features have 3 and 8 in 2-D"),  # broadcast
        ((4, 8, 2), "the projection goes from 4 to 8 channels in 2-D, the features have 3 and 8 in 2-D"),
        ((3, 8, 3), "the projection goes from 3 to 8 channels in 3-D, the features have 3 and 8 in 2-D"),
    ],
)
def test_a_projection_of_other_widths_is_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        FitNetsLoss()(random_maps((4, 5), 3, 0), random_maps((4, 5), 8, 1), FitNetsLoss().projection(*widths))


def test_a_module_that_leads_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"makes the student \(2, 1, 4, 5\), teacher is \(2, 8, 4, 5\)"):
        FitNetsLoss()(random_maps((4, 5), 1, 0), random_maps((4, 5), 8, 1), torch.nn.Identity())
