"""ReCo-KD against numbers that the authors' code gave, and against its literal equation.

``reco_kd.npz`` holds inputs, outputs and gradients of ``FeatureLoss`` in ``methods/reco.py`` of
ClinicaAlpha/DPRD-3D-MedSeg at 7470792, on a CPU in float64 but for its masks, which are float32; gradients of features
are rounded to float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_kd.losses import ReCoKDLoss, chunks, reco_kd
from tests.losses.random_maps import SHAPES, random_maps, random_valid

RECORDED = np.load(Path(__file__).with_name("reco_kd.npz"))
WEIGHTS = {"foreground_weight": 0.5, "background_weight": 0.25, "attention_weight": 3.0, "context_weight": 2.0}
# case -> student, target, options of the loss
CASES = {
    "labels": ("narrow_student", "labels", {}),
    "regions": ("narrow_student", "regions", {}),
    "same_width": ("wide_student", "labels", {}),
    "weights": ("narrow_student", "labels", {**WEIGHTS, "temperature": 2.0}),
    "no_foreground": ("narrow_student", None, {}),
}
NAMES = {  # in the authors' code, without the biases of the attention, whose gradient is 0
    "align.weight": "phi.weight",
    "align.bias": "phi.bias",
    **{f"conv_mask_{one[0]}.weight": f"{one}.attention" for one in ("student", "teacher")},
    **{
        f"channel_add_conv_{one[0]}.{layer}.{kind}": f"{one}.transform.{layer}.{kind}"
        for one in ("student", "teacher")
        for layer in (0, 1, 3)
        for kind in ("weight", "bias")
    },
}


def recorded(name):
    return torch.from_numpy(RECORDED[name])


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case):
    name, annotation, options = CASES[case]
    loss = ReCoKDLoss(**options)
    student, teacher = recorded(name).double().requires_grad_(), recorded("teacher").double()
    target = torch.zeros_like(recorded("labels")) if annotation is None else recorded(annotation)
    adapter = loss.projection(student.shape[1], 6, 3).double()
    parameters = dict(adapter.named_parameters())
    assert set(NAMES.values()) - parameters.keys() == (set() if name.startswith("n") else {"phi.weight", "phi.bias"})
    for theirs, ours in NAMES.items():
        if ours in parameters:
            parameters[ours].data = recorded(f"parameter_{theirs}").double().view_as(parameters[ours])
    value = loss(student, teacher, adapter, target=target, regions=annotation == "regions", num_classes=4)
    torch.testing.assert_close(value, recorded(f"{case}_loss"), rtol=1e-7, atol=0)
    value.backward()
    torch.testing.assert_close(student.grad.float(), recorded(f"{case}_student_gradient"), rtol=1e-5, atol=1e-7)
    for theirs, ours in NAMES.items():
        if ours in parameters:
            expected = recorded(f"{case}_gradient_{theirs}").view_as(parameters[ours])
            torch.testing.assert_close(parameters[ours].grad, expected, rtol=1e-5, atol=1e-7, msg=theirs)


def adapter_of(student, teacher):
    """An adapter whose context blocks add something."""
    torch.manual_seed(0)
    adapter = ReCoKDLoss().projection(student.shape[1], teacher.shape[1], student.ndim - 2).to(student.dtype)
    for block in (adapter.student, adapter.teacher):
        nn.init.normal_(block.transform[3].weight)
        nn.init.normal_(block.transform[3].bias)
    return adapter


def literal(student, teacher, adapter, target, valid, tau=0.5):
    """One region, one case, one structure after the other."""
    features = adapter.phi(student)
    cases, channels = features.shape[:2]
    count = features[0, 0].numel()

    def attention(maps):
        voxels = count * torch.softmax(maps.abs().mean(1).flatten(1) / tau, 1)
        return voxels.view(maps[:, :1].shape), channels * torch.softmax(maps.abs().flatten(2).mean(2) / tau, 1)

    voxels, of_channels = attention(teacher)
    own_voxels, own_channels = attention(features)
    masks = torch.zeros(2, cases, 1, *features.shape[2:], dtype=features.dtype)
    for case in range(cases):
        for structure in range(1, int(target.max()) + 1):
            inside = (target[case] == structure) & valid[case]
            masks[0, case][inside] = 1 / max(int(inside.sum()), 1)
        inside = (target[case] == 0) & valid[case]
        masks[1, case][inside] = 1 / max(int(inside.sum()), 1)
    total = (own_voxels - voxels).abs().mean() + (own_channels - of_channels).abs().mean()
    for mask in masks:
        weights = mask * voxels * of_channels.view(cases, channels, *[1] * (features.ndim - 2))
        total += (weights * (features - teacher).square()).sum() / (channels * mask.sum().clamp(min=1e-8))
    with_context = []
    for maps, block in ((features, adapter.student), (teacher, adapter.teacher)):
        weights = torch.softmax((maps.movedim(1, -1) @ block.attention).flatten(1), 1)
        added = block.transform((maps.flatten(2) * weights[:, None]).sum(2))
        with_context.append(maps + added.view(cases, channels, *[1] * (maps.ndim - 2)))
    return total + F.mse_loss(*with_context)


def random_labels(shape, classes=4, batch=2):
    return torch.randint(0, classes, (batch, 1, *shape), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_literal_equation(shape):
    student, teacher = random_maps(shape, 3, 0), random_maps(shape, 8, 1)
    adapter, target, valid = adapter_of(student, teacher), random_labels(shape), random_valid(shape)
    value = ReCoKDLoss()(student, teacher, adapter, target=target, valid=valid, num_classes=4)
    torch.testing.assert_close(value, literal(student, teacher, adapter, target, valid))
    looked_up = ReCoKDLoss()(student, teacher, adapter, target=target.float(), valid=valid)
    torch.testing.assert_close(looked_up, value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    loss, teacher, target = ReCoKDLoss(), random_maps(shape, 4, 0), random_labels(shape)
    adapter = loss.projection(4, 4, len(shape)).double()
    assert loss(teacher.clone(), teacher, adapter, target=target) == 0
    assert loss(random_maps(shape, 4, 1), teacher, adapter, target=target) > 0.1


def test_structures_of_every_size_weigh_the_same():
    """A difference in all voxels of a structure costs the same, whether these are many or few."""
    loss, teacher = ReCoKDLoss(attention_weight=0, context_weight=0), torch.ones(1, 4, 8, 9, dtype=torch.float64)
    target = torch.zeros(1, 1, 8, 9, dtype=torch.int64)
    target[..., 0, :2], target[..., 3:7, :] = 1, 2
    adapter = loss.projection(4, 4, 2).double()
    costs = [loss(teacher + (target == number), teacher, adapter, target=target) for number in (1, 2)]
    torch.testing.assert_close(*costs)
    assert costs[0] == 0.5  # one of two structures


def test_regions_are_labels_where_they_do_not_overlap():
    student, teacher, target = random_maps((6, 5), 3, 0), random_maps((6, 5), 8, 1), random_labels((6, 5))
    adapter, valid = adapter_of(student, teacher), random_valid((6, 5))
    regions = torch.cat([target == number for number in (1, 2, 3)], 1)
    expected = ReCoKDLoss()(student, teacher, adapter, target=target, valid=valid)
    found = ReCoKDLoss()(student, teacher, adapter, target=regions, regions=True, valid=valid)
    torch.testing.assert_close(found, expected)


def test_ignored_voxels_belong_to_no_region():
    loss = ReCoKDLoss(attention_weight=0, context_weight=0)
    student, teacher, target = random_maps((6, 5), 3, 0), random_maps((6, 5), 8, 1), random_labels((6, 5))
    adapter, valid = adapter_of(student, teacher), random_valid((6, 5))
    elsewhere, marked = torch.where(valid, student, 1e3), torch.where(valid, target, 4)
    expected = loss(student, teacher, adapter, target=target, valid=valid, num_classes=4)
    for labels in (target, marked):
        found = loss(elsewhere, teacher, adapter, target=labels, valid=valid, num_classes=4)
        torch.testing.assert_close(found, expected)
    nothing = loss(student.requires_grad_(), teacher, adapter, target=target, valid=torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0 and student.grad.abs().max() == 0


def test_annotation_is_reduced_to_the_first_voxel_of_every_cell():
    student, teacher, fine = random_maps((4, 6, 5), 3, 0), random_maps((4, 6, 5), 8, 1), random_labels((8, 12, 20))
    adapter = adapter_of(student, teacher)
    expected = ReCoKDLoss()(student, teacher, adapter, target=fine[..., ::2, ::2, ::4])
    torch.testing.assert_close(ReCoKDLoss()(student, teacher, adapter, target=fine), expected)
    other = ReCoKDLoss()(student, teacher, adapter, target=fine[..., 1::2, 1::2, 2::4])
    assert not torch.isclose(other, expected)


def test_a_new_context_block_adds_nothing():
    student, teacher, target = random_maps((6, 5), 3, 0), random_maps((6, 5), 8, 1), random_labels((6, 5))
    parts = {name: 0.0 for name in WEIGHTS if name != "context_weight"}
    adapter = ReCoKDLoss().projection(3, 8, 2).double()
    value = ReCoKDLoss(**parts)(student, teacher, adapter, target=target)
    torch.testing.assert_close(value, F.mse_loss(adapter.phi(student), teacher))


def test_chunks_change_nothing(monkeypatch):
    student, teacher = random_maps((9, 5, 6), 3, 0).requires_grad_(), random_maps((9, 5, 6), 8, 1)
    adapter, target = adapter_of(student, teacher), random_labels((9, 5, 6))

    def value_and_gradients():
        value = ReCoKDLoss()(student, teacher, adapter, target=target)
        return value, torch.autograd.grad(value, [student, *adapter.parameters()])

    expected = value_and_gradients()
    monkeypatch.setattr(chunks, "CHUNK", 1000)
    monkeypatch.setattr(reco_kd, "is_large", lambda _: True)
    torch.testing.assert_close(value_and_gradients(), expected)


def test_gradient_reaches_the_student_and_the_adapter_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 8, 1).requires_grad_()
    adapter = adapter_of(student, teacher)
    ReCoKDLoss()(student, teacher, adapter, target=random_labels((5, 6))).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    student, teacher = random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1)
    adapter, target = adapter_of(student, teacher), random_labels(shape)

    def value(features, *_):
        return ReCoKDLoss()(features, teacher, adapter, target=target)

    assert torch.autograd.gradcheck(value, (student, *adapter.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    adapter, target = adapter_of(student.float(), teacher), random_labels((8, 9, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ReCoKDLoss()(student, teacher, adapter, target=target)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, ReCoKDLoss()(student.float(), teacher.float(), adapter, target=target))


def test_stage_weights_are_the_authors():
    expected = [0.5736885994790366, 0.2497124667165199, 0.1086936642810655, 0.04731166533330069, 0.02059359845319131]
    assert ReCoKDLoss().stage_weights(5, 3) == pytest.approx(expected)
    expected = [0.5251477047629517, 0.30161815229583555, 0.17323413768973572]
    assert ReCoKDLoss().stage_weights(3, 2) == pytest.approx(expected)
    assert ReCoKDLoss(stage_decay=0).stage_weights(4, 3) == [0.25] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"foreground_weight": -1}, "foreground_weight must be a number of at least 0, got -1"),
        (dict.fromkeys(WEIGHTS, 0), "one of foreground_weight, .* must be above 0"),
        ({"stage_decay": 11}, "stage_decay must be at most 10, got 11"),
        ({"stage_decay": None}, "stage_decay must be a number of at least 0, got None"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ReCoKDLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "target", "message"),
    [
        ((2, 3, 8, 8), (2, 5, 8, 9), (2, 1, 8, 8), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((2, 4, 8, 8), (2, 5, 8, 8), (2, 1, 8, 8), "the projection goes from 3 to 5 channels in 2-D, the features"),
        ((2, 3, 8, 8), (2, 5, 8, 8), (2, 8, 8), r"target must be \(B, 1, \*spatial\) with batch size 2 in 2-D, got"),
        ((2, 3, 8, 8), (2, 5, 8, 8), (2, 2, 8, 8), r"target must be \(B, 1, \*spatial\) .* got \(2, 2, 8, 8\)"),
    ],
)
def test_input_errors(student, teacher, target, message):
    loss = ReCoKDLoss()
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher), loss.projection(3, 5, 2), target=torch.zeros(target))


def test_errors_of_other_inputs():
    loss, maps, target = ReCoKDLoss(), torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"valid must be boolean \(2, 1, 8, 8\), got torch.float32 \(2, 1, 8, 8\)"):
        loss(maps, maps, loss.projection(3, 3, 2), target=target, valid=target)
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        loss(maps, maps, loss.projection(3, 3, 2), target=target, num_classes=0)
    with pytest.raises(ValueError, match="the context blocks are for 4 channels, the teacher has 3"):
        loss(maps, maps, loss.projection(4, 4, 2), target=target)
    with pytest.raises(ValueError, match=r"target must be \(B, regions, \*spatial\) with batch size 2 in 2-D"):
        loss(maps, maps, loss.projection(3, 3, 2), target=target[:1], regions=True)
    with pytest.raises(ValueError, match="student has 2 channels, teacher 3: give a projection between them"):
        loss(maps[:, :2], maps, loss.projection(3, 3, 2), target=target)
