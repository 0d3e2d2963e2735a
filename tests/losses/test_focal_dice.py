import math

import pytest
import torch

from nnunet_kd.losses import FocalDiceLoss
from tests.losses.random_maps import SHAPES, random_maps, random_valid

KINDS = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])


def random_target(shape, regions, seed=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    if regions:
        return torch.rand(batch, 3, *shape, generator=generator) < 0.3
    return torch.randint(0, 3, (batch, 1, *shape), generator=generator)


def literal(logits, target, regions, valid, gamma, alpha, smooth):
    """Eq. 14 voxel by voxel: focal loss of Lin et al., eq. 5, and soft Dice of each image and class."""
    focal, count, dice = 0.0, 0, []
    for image in range(len(logits)):
        columns = logits[image].flatten(1).t().tolist()
        truths = target[image].flatten(1).t().tolist()
        used = valid[image].flatten().tolist()
        sums = [[0.0, 0.0] for _ in range(3)]
        for z, t, counts in zip(columns, truths, used, strict=True):
            if not counts:
                continue
            if regions:
                p = [1 / (1 + math.exp(-value)) for value in z]
                one_hot = [float(value) for value in t]
                right = [q if inside else 1 - q for q, inside in zip(p, one_hot, strict=True)]
            else:
                p = [math.exp(value) / sum(math.exp(other) for other in z) for value in z]
                one_hot = [float(number == t[0]) for number in range(3)]
                right = [p[t[0]]]
            for number, q in enumerate(right):
                foreground = one_hot[number] if regions else t[0] > 0
                weight = 1 if alpha is None else (alpha if foreground else 1 - alpha)
                focal -= weight * (1 - q) ** gamma * math.log(q)
                count += 1
            for number in range(3):
                sums[number][0] += p[number] * one_hot[number]
                sums[number][1] += p[number] + one_hot[number]
        dice += [1 - (2 * both + smooth) / (total + smooth) for both, total in sums[0 if regions else 1 :]]
    return 0.5 * focal / max(count, 1) + sum(dice) / len(dice)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@KINDS
def test_equals_the_literal_equation(shape, regions):
    logits, target, valid = random_maps(shape, 3, 0), random_target(shape, regions), random_valid(shape)
    everywhere = torch.ones_like(valid)
    expected = literal(logits, target, regions, everywhere, 2, None, 1)
    assert FocalDiceLoss()(logits, target, regions).item() == pytest.approx(expected, rel=1e-10)
    expected = literal(logits, target, regions, valid, 1.5, 0.3, 0.1)
    loss = FocalDiceLoss(gamma=1.5, alpha=0.3, smooth=0.1)
    assert loss(logits, target, regions, valid).item() == pytest.approx(expected, rel=1e-10)


@KINDS
def test_a_batch_is_one_image_laid_side_by_side_where_dice_is_of_the_batch(regions):
    logits, target = random_maps((6, 5), 3, 0), random_target((6, 5), regions)
    joined = [torch.cat(list(tensor), -1)[None] for tensor in (logits, target)]
    batch = FocalDiceLoss(batch_dice=True)
    torch.testing.assert_close(batch(logits, target, regions), FocalDiceLoss()(*joined, regions))
    assert not torch.isclose(batch(logits, target, regions), FocalDiceLoss()(logits, target, regions))


def test_without_gamma_the_focal_part_is_half_the_cross_entropy():
    logits, target = random_maps((6, 5), 3, 0), random_target((6, 5), False)
    difference = FocalDiceLoss(gamma=0)(logits, target) - FocalDiceLoss(gamma=0, alpha=0.5)(logits, target)
    torch.testing.assert_close(difference, torch.nn.functional.cross_entropy(logits, target[:, 0]) / 4)


@KINDS
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)], ids=str)
def test_approaches_zero_at_a_perfect_prediction(shape, regions):
    target = random_target(shape, regions)
    perfect = target.double() if regions else torch.cat([target == number for number in range(3)], 1).double()
    values = [FocalDiceLoss()(scale * (2 * perfect - 1), target, regions).item() for scale in (1, 4, 16, 400)]
    assert values == sorted(values, reverse=True) and values[-2] < 1e-6 and values[-1] == pytest.approx(0, abs=1e-12)


@KINDS
def test_a_class_that_is_neither_there_nor_found_costs_nothing(regions):
    target = torch.zeros(1, 3 if regions else 1, 8, 8)
    logits = torch.full((1, 3, 8, 8), -200.0)
    if not regions:
        logits[:, 0] = 200.0
    assert FocalDiceLoss()(logits, target, regions).item() == pytest.approx(0, abs=1e-6)


def test_classes_in_another_order_are_the_same_segmentation():
    logits, target = random_maps((6, 5), 3, 0), random_target((6, 5), False)
    swapped = torch.tensor([0, 2, 1])
    torch.testing.assert_close(FocalDiceLoss()(logits[:, swapped], swapped[target]), FocalDiceLoss()(logits, target))


def test_labels_with_and_without_a_channel_axis_and_of_any_type():
    logits, target = random_maps((6, 5), 3, 0), random_target((6, 5), False)
    expected = FocalDiceLoss()(logits, target)
    for same in (target[:, 0], target.float(), target.to(torch.int16)):
        assert FocalDiceLoss()(logits, same) == expected


@KINDS
def test_ignored_voxels_do_not_matter(regions):
    shape = (5, 6, 7)
    logits, target, valid = random_maps(shape, 3, 0), random_target(shape, regions), random_valid(shape)
    loss = FocalDiceLoss(alpha=0.25)
    expected = loss(logits, target, regions, valid)
    other = torch.where(valid, target, ~target if regions else 7)  # a label that is no class
    torch.testing.assert_close(loss(torch.where(valid, logits, 1e4), other, regions, valid), expected)
    logits.requires_grad_()
    nothing = loss(logits, target, regions, torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0 and logits.grad.abs().max() == 0


@KINDS
@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape, regions):
    logits, target, valid = (
        random_maps(shape, 3, 0).requires_grad_(),
        random_target(shape, regions),
        random_valid(shape),
    )
    for loss in (FocalDiceLoss(), FocalDiceLoss(0.5, 0.25, 0.1, batch_dice=True)):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, target, regions, valid), logits)


@KINDS
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_extreme_logits_have_finite_gradients(regions, gamma):
    logits = (500 * random_maps((6, 5), 3, 0, torch.float32)).requires_grad_()
    value = FocalDiceLoss(gamma)(logits, random_target((6, 5), regions), regions)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_single_precision(dtype, regions):
    logits, target = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_target((8, 9, 5), regions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FocalDiceLoss()(logits, target, regions)
    value.backward()
    assert value.dtype == torch.float32 and logits.grad.dtype == dtype
    torch.testing.assert_close(value, FocalDiceLoss()(logits.float(), target, regions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, "gamma must be a number of at least 0, got -1"),
        ({"smooth": 0}, "smooth must be a number above 0, got 0"),
        ({"smooth": 1e-50}, "smooth must be within single precision, got 1e-50"),  # 0 / 0 where nothing is found
        ({"gamma": 10**400}, "gamma must be within single precision, got 1000"),
        ({"alpha": 1.0}, "alpha must be below 1, got 1.0"),
        ({"alpha": 0}, "alpha must be a number above 0, got 0"),
        ({"batch_dice": 1}, "batch_dice must be true or false, got 1"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        FocalDiceLoss(**options)


@pytest.mark.parametrize(
    ("logits", "target", "regions", "valid", "message"),
    [
        ((2, 3, 8), (2, 1, 8), False, None, r"expected logits \(B, C, \*spatial\) in 2-D or 3-D, got \(2, 3, 8\)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), False, None, r"expected labels \(2, 1, 8, 8\), with or without the channel axis"),
        ((2, 3, 8, 8), (2, 1, 8, 8), True, None, r"expected one target channel a region, \(2, 3, 8, 8\), got"),
        ((2, 1, 8, 8), (2, 1, 8, 8), False, None, "labels need a background and another class"),
        ((2, 3, 8, 8), (2, 1, 8, 8), False, (2, 3, 8, 8), r"valid must be boolean \(2, 1, 8, 8\), got torch.bool"),
    ],
)
def test_input_errors(logits, target, regions, valid, message):
    mask = valid and torch.ones(valid, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        FocalDiceLoss()(torch.zeros(logits), torch.zeros(target), regions, mask)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_that_is_no_class_is_refused_where_it_counts(label):
    logits, target = random_maps((4, 5), 3, 0), random_target((4, 5), False)
    target[0, 0, 1, 2] = label
    with pytest.raises(ValueError, match="labels of voxels that count must be 0 to 2, got"):
        FocalDiceLoss()(logits, target)
    assert FocalDiceLoss()(logits, target, valid=target != label).isfinite()
