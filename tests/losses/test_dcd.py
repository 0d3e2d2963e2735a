import itertools

import pytest
import torch
from torch import nn

from nnunet_kd.losses import DCDLoss
from nnunet_kd.wavelets import dwt, idwt, project_details, select_bands
from tests.losses.random_maps import SHAPES, random_maps

BANDS = ("directional", "lll", "hhh", "detail", "all")


def literal(loss: DCDLoss, student, teacher, projection):
    """Equation 7 step by step: project, transform both, mask, invert both, mean squared difference."""
    student = projection(student) if projection is not None else student
    keep = select_bands(loss.bands, student.ndim - 2)
    lowest = "a" * (student.ndim - 2)

    def selected(coefficients):
        bands = [band for level in coefficients.details for name, band in level.items() if name in keep]
        return bands + ([coefficients.approximation] if lowest in keep else [])

    def distance(a, b, levels):
        if loss.reconstruct:
            projected = [project_details(x, loss.wavelet, levels, loss.bands) for x in (a, b)]
            return (projected[0] - projected[1]).square().mean()
        pairs = zip(selected(dwt(a, loss.wavelet, levels)), selected(dwt(b, loss.wavelet, levels)), strict=True)
        differences = torch.cat([(x - y).flatten() for x, y in pairs])
        return differences.square().mean()

    if loss.level_weighting == "energy":
        return distance(student, teacher, loss.levels)
    terms = []
    for _ in range(loss.levels):
        if any(band.numel() for band in selected(dwt(student, loss.wavelet, 1))):
            terms.append(distance(student, teacher, 1))
        student, teacher = (dwt(x, loss.wavelet, 1).approximation for x in (student, teacher))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weighting", ["level_mean", "energy"])
def test_equals_the_literal_equation(shape, weighting):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 8, 1)
    for bands, reconstruct, levels in itertools.product(BANDS, (True, False), (1, 3)):
        loss = DCDLoss("db2", levels, bands, reconstruct, weighting)
        if bands == "hhh" and 1 in shape:
            continue
        for projection in (loss.projection(3, 8, len(shape)), nn.Sequential(loss.projection(3, 8, len(shape)))):
            projection.double()
            expected = literal(loss, student, teacher, projection)
            torch.testing.assert_close(loss(student, teacher, projection), expected, rtol=1e-10, atol=1e-14)
        expected = literal(loss, random_maps(shape, 8, 2), teacher, None)
        torch.testing.assert_close(loss(random_maps(shape, 8, 2), teacher), expected, rtol=1e-10, atol=1e-14)


def test_projected_student_gives_the_same_gradients_either_way():
    student, teacher = random_maps((10, 7, 9), 3, 0).requires_grad_(), random_maps((10, 7, 9), 8, 1)
    loss = DCDLoss()
    projection = loss.projection(3, 8, 3).double()
    fast = torch.autograd.grad(loss(student, teacher, projection), [student, projection.weight])
    slow = torch.autograd.grad(literal(loss, student, teacher, projection), [student, projection.weight])
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality(shape):
    teacher = random_maps(shape, 4, 0)
    assert DCDLoss()(teacher.clone(), teacher) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_constant_added_to_a_channel_changes_nothing(shape):
    """The approximation is left free: that is what the method is for."""
    student, teacher = random_maps(shape, 4, 0), random_maps(shape, 4, 1)
    shift = torch.tensor([5.0, -3.0, 100.0, 0.0], dtype=torch.float64).view(1, 4, *[1] * len(shape))
    torch.testing.assert_close(DCDLoss()(student + shift, teacher), DCDLoss()(student, teacher))


def test_bands_add_up():
    student, teacher = random_maps((12, 9, 15), 4, 0), random_maps((12, 9, 15), 4, 1)
    value = {bands: DCDLoss(bands=bands, level_weighting="energy")(student, teacher) for bands in BANDS}
    torch.testing.assert_close(value["all"], (student - teacher).square().mean())
    torch.testing.assert_close(value["detail"] + value["lll"], value["all"])
    torch.testing.assert_close(value["directional"] + value["hhh"], value["detail"])


def test_gradient_reaches_student_and_projection_only():
    student, teacher = random_maps((8, 6, 9), 3, 0).requires_grad_(), random_maps((8, 6, 9), 8, 1).requires_grad_()
    projection = DCDLoss().projection(3, 8, 3).double()
    DCDLoss()(student, teacher, projection).backward()
    assert student.grad is not None and projection.weight.grad is not None and teacher.grad is None


@pytest.mark.parametrize("shape", [(5, 4, 3), (6, 7)], ids=str)
def test_gradcheck(shape):
    loss = DCDLoss("db2", levels=2)
    projection = loss.projection(2, 5, len(shape)).double()
    student, teacher = random_maps(shape, 2, 0, batch=1).requires_grad_(), random_maps(shape, 5, 1, batch=1)
    call = _Call(loss, projection)

    def value(student, weight):
        return torch.func.functional_call(call, {"projection.weight": weight}, (student, teacher))

    assert torch.autograd.gradcheck(value, (student, projection.weight))


class _Call(nn.Module):
    def __init__(self, loss, projection):
        super().__init__()
        self.loss, self.projection = loss, projection

    def forward(self, student, teacher):
        return self.loss(student, teacher, self.projection)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 10), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 10), 8, 1, dtype)
    loss = DCDLoss()
    projection = loss.projection(3, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, projection)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), projection))


def test_nothing_to_select_is_zero_and_differentiable():
    student = random_maps((1, 1, 1), 4, 0).requires_grad_()
    value = DCDLoss()(student, random_maps((1, 1, 1), 4, 1))
    value.backward()
    assert value == 0 and student.grad.abs().max() == 0


def test_nothing_to_select_is_zero_where_the_sum_of_the_features_is_infinite():
    student = torch.full((1, 1, 1, 30, 30), 1e38, requires_grad=True)
    value = DCDLoss(levels=1, bands="hhh")(student, torch.zeros(1, 1, 1, 30, 30))
    value.backward()
    assert value == 0 and student.grad.abs().max() == 0


@pytest.mark.parametrize(("narrow", "wide"), [(3, 8), (5, 8)], ids=["transformed first", "projected first"])
@pytest.mark.parametrize(
    ("of_features", "of_adapter"), [(torch.float64, torch.float32), (torch.float32, torch.float16)]
)
def test_an_adapter_of_another_type_is_used_in_that_of_the_features(narrow, wide, of_features, of_adapter):
    student, teacher = random_maps((4, 5), narrow, 0, of_features), random_maps((4, 5), wide, 1, of_features)
    phi = DCDLoss().projection(narrow, wide, 2).to(of_adapter)
    value = DCDLoss()(student, teacher, phi)
    value.backward()
    assert value.dtype == of_features and phi.weight.grad.dtype == of_adapter
    torch.testing.assert_close(value, DCDLoss()(student, teacher, phi.to(of_features)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels must be a positive integer, got 0"),
        ({"levels": 1000}, "levels must be at most 20, got 1000"),  # Python went no deeper
        ({"levels": True}, "levels must be a positive integer, got True"),
        ({"reconstruct": 1}, "reconstruct must be true or false, got 1"),
        ({"level_weighting": "sum"}, "level_weighting must be 'level_mean' or 'energy', got 'sum'"),
        ({"bands": "high"}, "bands must be one of .* got 'high'"),
        ({"wavelet": ""}, "unknown wavelet '': give PyWavelets' name of an orthogonal one"),
        ({"wavelet": "bior2.2"}, "wavelet 'bior2.2' is not orthogonal"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DCDLoss(**options)


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
        DCDLoss()(torch.zeros(student), torch.zeros(teacher))


def test_reconstruction_only_changes_what_the_energy_is_divided_by():
    student, teacher = random_maps((8, 8, 8), 4, 0), random_maps((8, 8, 8), 4, 1)
    with_idwt = DCDLoss(levels=1)(student, teacher)
    without = DCDLoss(levels=1, reconstruct=False)(student, teacher)
    torch.testing.assert_close(without * 6 / 8, with_idwt)  # six of the eight bands


def test_transform_and_projection_commute():
    features_ = random_maps((9, 8, 7), 3, 0)
    phi = DCDLoss().projection(3, 5, 3).double()
    torch.testing.assert_close(project_details(phi(features_), levels=3), phi(project_details(features_, levels=3)))
    torch.testing.assert_close(idwt(dwt(features_)), features_)


@pytest.mark.parametrize("widths", [(3, 1, 2), (4, 8, 2), (3, 8, 3)], ids=str)
def test_a_projection_of_other_widths_is_refused(widths):
    with pytest.raises(ValueError, match="the projection goes from .* the features have 3 and 8 in 2-D"):
        DCDLoss()(random_maps((4, 5), 3, 0), random_maps((4, 5), 8, 1), DCDLoss().projection(*widths))
