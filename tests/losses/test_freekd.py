import pytest
import torch
from torch import nn

from nnunet_kd.losses import FreeKDLoss
from nnunet_kd.losses.freekd import FreeKDAdapter
from nnunet_kd.wavelets import band_names, dwt
from tests.losses.random_maps import SHAPES, random_maps


def adapter_of(loss, student, teacher, dim, size=1.0):
    adapter = loss.projection(student, teacher, dim).double()
    with torch.no_grad():
        adapter.prompts.tokens.copy_(size * torch.randn_like(adapter.prompts.tokens))
    return adapter


def masks_of(loss, adapter, teacher):
    """(level, name) -> mean mask: the sigmoid of every token's product with every voxel of the teacher's band."""
    names = band_names(teacher.ndim - 2)[1:]
    masks = {}
    for level, bands in enumerate(dwt(teacher, loss.wavelet, loss.levels).details):
        for index, name in enumerate(names):
            tokens = adapter.prompts.tokens[level, index]
            each = [torch.sigmoid(torch.einsum("c,bc...->b...", token, bands[name])) for token in tokens]
            masks[level, name] = torch.stack(each).mean(0)[:, None]
    return masks


def literal(loss, student, teacher, adapter):
    """Both transformed at the teacher's width, masked, compared level by level."""
    student = adapter.phi(student)
    masks = masks_of(loss, adapter, teacher)
    total = 0.0
    for level, (ours, theirs) in enumerate(
        zip(dwt(student, loss.wavelet, loss.levels).details, dwt(teacher, loss.wavelet, loss.levels).details)  # noqa: B905
    ):
        differences = [((masks[level, name] * (ours[name] - theirs[name])).abs()).flatten() for name in ours]
        if sum(part.numel() for part in differences):
            total = total + torch.cat(differences).mean()
    return total + loss.feature_weight * (student - teacher).square().mean()


class Wrapped(nn.Module):
    """A projection of which nothing is known."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", [FreeKDLoss(), FreeKDLoss(2, 3, "db2", 0.5)], ids=["default", "other"])
def test_equals_the_literal_equation(shape, loss):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 8, 1)
    adapter = adapter_of(loss, 3, 8, len(shape))
    expected = literal(loss, student, teacher, adapter)
    torch.testing.assert_close(loss(student, teacher, adapter), expected)
    other = FreeKDAdapter(Wrapped(adapter.phi), adapter.prompts)
    torch.testing.assert_close(loss(student, teacher, other), expected)


def test_gradients_are_those_of_the_literal_equation():
    loss, student, teacher = FreeKDLoss(), random_maps((10, 7, 9), 3, 0).requires_grad_(), random_maps((10, 7, 9), 8, 1)
    adapter = adapter_of(loss, 3, 8, 3)
    fast = torch.autograd.grad(loss(student, teacher, adapter), [student, adapter.phi.weight])
    slow = torch.autograd.grad(literal(loss, student, teacher, adapter), [student, adapter.phi.weight])
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    loss, student = FreeKDLoss(), random_maps(shape, 3, 0)
    adapter = adapter_of(loss, 3, 8, len(shape))
    teacher = adapter.phi(student).detach()
    assert loss(student, teacher, adapter).item() == pytest.approx(0, abs=1e-12)
    assert loss(student + 1, teacher, adapter) > 0.01


def test_without_feature_loss_a_constant_added_to_a_channel_changes_nothing():
    loss, student, teacher = FreeKDLoss(feature_weight=0), random_maps((7, 9), 3, 0), random_maps((7, 9), 8, 1)
    adapter = adapter_of(loss, 3, 8, 2)
    shift = torch.tensor([5.0, -3.0, 100.0], dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(loss(student + shift, teacher, adapter), loss(student, teacher, adapter))


def test_gradient_reaches_student_and_projection_only():
    loss = FreeKDLoss()
    student, teacher = random_maps((8, 6, 9), 3, 0).requires_grad_(), random_maps((8, 6, 9), 8, 1).requires_grad_()
    adapter = adapter_of(loss, 3, 8, 3)
    loss(student, teacher, adapter).backward()
    assert student.grad is not None and adapter.phi.weight.grad is not None
    assert teacher.grad is None and adapter.prompts.tokens.grad is None


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    loss, student, teacher = FreeKDLoss(2), random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1)
    adapter = adapter_of(loss, 2, 4, len(shape))
    assert torch.autograd.gradcheck(lambda s, _: loss(s, teacher, adapter), (student, adapter.phi.weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompts_filter_the_details_and_nothing_else(shape):
    loss, teacher = FreeKDLoss(2), random_maps(shape, 4, 0)
    adapter = adapter_of(loss, 3, 4, len(shape))
    before, after = (dwt(x, loss.wavelet, 2) for x in (teacher, loss.tuning(teacher, adapter)[0]))
    torch.testing.assert_close(after.approximation, before.approximation)
    masks = masks_of(loss, adapter, teacher)
    for level, bands in enumerate(before.details):
        for name, band in bands.items():
            torch.testing.assert_close(after.details[level][name], masks[level, name] * band)


def test_redundancy_is_the_mean_overlap_of_different_tokens():
    loss, teacher = FreeKDLoss(1, tokens=3), random_maps((4, 6), 4, 0)
    adapter = adapter_of(loss, 3, 4, 2)
    overlaps = []
    bands = dwt(teacher, "haar", 1).details[0]
    for index, name in enumerate(band_names(2)[1:]):
        for image in range(2):
            masks = [torch.sigmoid(bands[name][image].permute(1, 2, 0) @ t) for t in adapter.prompts.tokens[0, index]]
            overlaps += [
                2 * (a * b).sum() / (a.square().sum() + b.square().sum())
                for i, a in enumerate(masks)
                for j, b in enumerate(masks)
                if i != j
            ]
    torch.testing.assert_close(loss.tuning(teacher, adapter)[1], torch.stack(overlaps).mean())
    with torch.no_grad():
        adapter.prompts.tokens.zero_()
    torch.testing.assert_close(loss.tuning(teacher, adapter)[1].item(), 1.0)


def test_tuning_reaches_the_prompts_only():
    loss, teacher = FreeKDLoss(), random_maps((8, 6, 9), 8, 1).requires_grad_()
    adapter = adapter_of(loss, 3, 8, 3, size=0.1)
    filtered, redundancy = loss.tuning(teacher, adapter)
    (filtered.square().mean() + redundancy).backward()
    assert adapter.prompts.tokens.grad.abs().max() > 0
    assert teacher.grad is None and adapter.phi.weight.grad is None


def test_a_single_voxel_has_no_details():
    loss, teacher = FreeKDLoss(), random_maps((1, 1), 8, 1)
    adapter = adapter_of(loss, 3, 8, 2)
    torch.testing.assert_close(loss.tuning(teacher, adapter)[0], teacher)
    assert loss.tuning(teacher, adapter)[1] == 0
    student = random_maps((1, 1), 3, 0)
    torch.testing.assert_close(loss(student, teacher, adapter), 5 * (adapter.phi(student) - teacher).square().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    loss = FreeKDLoss()
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    adapter = loss.projection(3, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, adapter)
        assert loss.tuning(teacher, adapter)[0].dtype == dtype
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), adapter))


def test_without_feature_loss_squares_beyond_float32_do_not_matter():
    loss, student, teacher = FreeKDLoss(feature_weight=0), torch.full((1, 2, 3, 4), 1e30), torch.zeros(1, 2, 3, 4)
    adapter = loss.projection(2, 2, 2)
    student.requires_grad_()
    value = loss(student, teacher, adapter)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_filtered_half_precision_features_stay_finite():
    """A feature near the end of the type is beyond it without the one band that is negative there."""
    loss, teacher = FreeKDLoss(1, 1), torch.tensor([[[[65504.0, -17600.0], [-65504.0, 34112.0]]]]).half()
    adapter = loss.projection(1, 1, 2)
    with torch.no_grad():
        for index, name in enumerate(band_names(2)[1:]):
            positive = -1 if name == "ad" else 1
            adapter.prompts.tokens[0, index] = positive * dwt(teacher.float(), "haar", 1).details[0][name].sign()
    filtered = loss.tuning(teacher, adapter)[0]
    assert loss.tuning(teacher.float(), adapter)[0].abs().max() > 65504
    assert filtered.dtype == torch.float16 and filtered.isfinite().all()


@pytest.mark.parametrize("options", [{"levels": 2}, {"levels": 4}, {"tokens": 5}], ids=str)
def test_prompts_of_another_loss_are_refused(options):
    loss, adapter = FreeKDLoss(), FreeKDLoss(**options).projection(3, 8, 2)
    student, teacher = random_maps((4, 5), 3, 0), random_maps((4, 5), 8, 1)
    for call in (
        lambda: loss(student, teacher, adapter),
        lambda: loss.tuning(teacher, adapter),
    ):
        with pytest.raises(
            ValueError, match=r"prompts \(.*\) are not those of 3 levels, 6 tokens and teacher features"
        ):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels must be a positive integer, got 0"),
        ({"tokens": 10**6}, "tokens must be at most 1000, got 1000000"),
        ({"tokens": 1.5}, "tokens must be a positive integer, got 1.5"),
        ({"feature_weight": -1}, "feature_weight must be a number of at least 0, got -1"),
        ({"wavelet": "bior2.2"}, "wavelet 'bior2.2' is not orthogonal"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        FreeKDLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 8, 8), (2, 8, 8, 9), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((1, 3, 8, 8), (2, 8, 8, 8), "student has batch size 1, teacher 2"),
        ((2, 3, 8), (2, 8, 8), r"expected student features \(B, C, \*spatial\) in 2-D or 3-D"),
    ],
)
def test_input_errors(student, teacher, message):
    loss = FreeKDLoss()
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher), loss.projection(3, 8, 2))
