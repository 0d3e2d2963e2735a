"""DPRD against numbers that the authors' code gave, against its literal equation, and across processes.

``dprd.npz`` holds inputs, outputs and gradients of ``_SingleStageRelationLoss`` of ClinicaAlpha/DPRD-3D-MedSeg at
7470792, in float64 on a CPU; gradients of features are rounded to float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch import multiprocessing, nn

from nnunet_kd.losses import DPRDLoss, chunks, masked_pooling
from nnunet_kd.losses.masked_pooling import masked_averages, pooled_grid
from tests.losses.random_maps import SHAPES, random_maps, random_valid

RECORDED = np.load(Path(__file__).with_name("dprd.npz"))
# case -> batch, mask, width, weight of the lengths, smoothness
CASES = {
    "all": (3, None, 4, 0.5, 1.0),
    "same": (3, "same", 4, 0.5, 1.0),
    "finer": (3, "finer", 4, 2.0, 0.1),
    "empty": (3, "empty", 4, 0.5, 1.0),
    "pair": (2, "same", 4, 0.5, 1.0),
    "wide": (3, "same", 5, 0.5, 1.0),
}


def recorded(name):
    return torch.from_numpy(RECORDED[name])


def adapter_of(loss, student, teacher):
    torch.manual_seed(0)
    return loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2).to(student.dtype)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case):
    batch, mask, width, length_weight, smoothness = CASES[case]
    loss = DPRDLoss(width, length_weight=length_weight, smoothness=smoothness)
    student, teacher = recorded("student")[:batch].double().requires_grad_(), recorded("teacher")[:batch].double()
    adapter = loss.projection(3, 5, 3).double()
    weight = recorded("student_weight").double()
    adapter.student.weight.data = torch.cat([weight, weight[:1]])[:width].view(width, 3, 1, 1, 1)
    if width == 4:
        adapter.teacher.weight.data = recorded("teacher_weight").double().view(4, 5, 1, 1, 1)
    else:
        assert isinstance(adapter.teacher, nn.Identity)
    foreground = None if mask is None else recorded(f"mask_{mask}")[:batch]
    value = loss(student, teacher, adapter, foreground=foreground)
    torch.testing.assert_close(value, recorded(f"{case}_loss"), rtol=1e-10, atol=0)
    value.backward()
    torch.testing.assert_close(student.grad.float(), recorded(f"{case}_student_gradient"), rtol=1e-5, atol=1e-8)
    weights = {"weight": adapter.student, "teacher_weight": adapter.teacher}
    for name, layer in weights.items():
        if not isinstance(layer, nn.Identity):
            found = layer.weight.grad.flatten(1)
            torch.testing.assert_close(found, recorded(f"{case}_{name}_gradient"), rtol=1e-8, atol=1e-10)


def literal(student, teacher, adapter, foreground, length_weight=0.5):
    """One network, one cell, one pair after the other."""
    displacements = []
    for features, layer in ((student, adapter.student), (teacher, adapter.teacher)):
        features = layer(features)
        grid, vectors = features.shape[2:], []
        for case in range(len(features)):
            values = []
            for cell in np.ndindex(*pooled_grid(grid)):
                box = tuple(
                    slice(i * size // count, -(-(i + 1) * size // count))
                    for i, size, count in zip(cell, grid, pooled_grid(grid), strict=True)
                )
                inside = features[case][(slice(None), *box)][:, foreground[case, 0][box]]
                values.append(inside.mean(1) if inside.shape[1] else inside.new_zeros(len(inside)))
            vectors.append(torch.cat(values))
        displacements.append([vectors[i] - vectors[j] for i in range(len(vectors)) for j in range(i + 1, len(vectors))])
    means = [sum(d.norm() for d in pairs) / len(pairs) + 1e-6 for pairs in displacements]
    total = 0.0
    for ours, theirs in zip(*displacements, strict=True):
        total += F.smooth_l1_loss(ours / means[0], theirs / means[1], reduction="sum")
        total += length_weight * F.smooth_l1_loss(ours.norm() / means[0], theirs.norm() / means[1])
    return total / len(displacements[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_literal_equation(shape):
    loss = DPRDLoss(6)
    student, teacher = random_maps(shape, 3, 0, batch=3), random_maps(shape, 8, 1, batch=3)
    adapter, foreground = adapter_of(loss, student, teacher), random_valid(shape, batch=3)
    foreground[1, :, : shape[0] // 2] = False
    value = loss(student, teacher, adapter, foreground=foreground)
    torch.testing.assert_close(value, literal(student, teacher, adapter, foreground))
    everywhere = torch.ones_like(foreground)
    torch.testing.assert_close(loss(student, teacher, adapter), literal(student, teacher, adapter, everywhere))


def test_a_single_pair_is_compared_by_its_cosine():
    loss, foreground = DPRDLoss(3), random_valid((6, 5))
    student, teacher = random_maps((6, 5), 3, 0), random_maps((6, 5), 3, 1)
    value = loss(student, teacher, adapter_of(loss, student, teacher), foreground=foreground)
    lines = [one[0] - one[1] for one in masked_averages((student, teacher), foreground, torch.float64)]
    torch.testing.assert_close(
        value, 1 - F.cosine_similarity(*(line.flatten() for line in lines), dim=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    loss, foreground = DPRDLoss(4), random_valid(shape, batch=3)
    teacher, other = random_maps(shape, 4, 0, batch=3), random_maps(shape, 4, 1, batch=3)
    adapter = adapter_of(loss, teacher, teacher)
    assert loss(teacher.clone(), teacher, adapter, foreground=foreground) == 0
    assert loss(other, teacher, adapter, foreground=foreground) > 0.1


def test_scale_and_offset_of_the_features_do_not_matter():
    loss, foreground = DPRDLoss(6), random_valid((6, 5, 9), batch=3)
    foreground[:, :, ::3, ::2, ::4] = True  # no cell is empty
    student, teacher = random_maps((6, 5, 9), 3, 0, batch=3), random_maps((6, 5, 9), 8, 1, batch=3)
    adapter = adapter_of(loss, student, teacher)
    expected = loss(student, teacher, adapter, foreground=foreground)
    moved = 7 * student + torch.randn(1, 3, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(loss(moved, teacher, adapter, foreground=foreground), expected, rtol=1e-5, atol=0)


def test_voxels_outside_the_foreground_do_not_matter():
    loss, foreground = DPRDLoss(6), random_valid((6, 5, 9))
    student, teacher = random_maps((6, 5, 9), 3, 0), random_maps((6, 5, 9), 8, 1)
    adapter = adapter_of(loss, student, teacher)
    elsewhere = torch.where(foreground, student, 1e3)
    expected = loss(student, teacher, adapter, foreground=foreground)
    torch.testing.assert_close(loss(elsewhere, teacher, adapter, foreground=foreground), expected)


def test_without_pairs_or_foreground_the_loss_is_0():
    loss = DPRDLoss(6)
    student, teacher = random_maps((6, 5), 3, 0).requires_grad_(), random_maps((6, 5), 8, 1)
    adapter = adapter_of(loss, student, teacher)
    alone = loss(student[:1], teacher[:1], adapter)
    nothing = loss(student, teacher, adapter, foreground=torch.zeros(2, 1, 6, 5, dtype=torch.bool))
    (alone + nothing).backward()
    assert alone == nothing == 0 and student.grad.abs().max() == 0


def test_chunks_change_nothing(monkeypatch):
    maps, mask = (random_maps((9, 5, 6), 3, 0).requires_grad_(), random_maps((9, 5, 6), 8, 1)), random_valid((9, 5, 6))
    weights = [random_maps(pooled_grid((9, 5, 6)), one.shape[1], 2) for one in maps]

    def value_and_gradient():
        averages = masked_averages(maps, mask, torch.float64)
        value = sum((one * weight).sum() for one, weight in zip(averages, weights, strict=True))
        return value, torch.autograd.grad(value, maps[0])[0]

    expected = value_and_gradient()
    monkeypatch.setattr(chunks, "CHUNK", 400)
    monkeypatch.setattr(masked_pooling, "is_large", lambda _: True)
    torch.testing.assert_close(value_and_gradient(), expected)


def test_gradient_reaches_the_student_and_the_projections_only():
    loss = DPRDLoss(6)
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 8, 1).requires_grad_()
    adapter = adapter_of(loss, student, teacher)
    loss(student, teacher, adapter, foreground=random_valid((5, 6))).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    loss, foreground = DPRDLoss(3), random_valid(shape, batch=3)
    student, teacher = random_maps(shape, 2, 0, batch=3).requires_grad_(), random_maps(shape, 4, 1, batch=3)
    adapter = adapter_of(loss, student, teacher)

    def value(features, *_):
        return loss(features, teacher, adapter, foreground=foreground)

    assert torch.autograd.gradcheck(value, (student, *adapter.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    loss, foreground = DPRDLoss(16), random_valid((8, 9, 5))
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    adapter = adapter_of(loss, student, teacher).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, adapter, foreground=foreground)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), adapter, foreground=foreground))


def test_memory_of_recent_cases():
    """Two batches of two, the second with three remembered places, of which two are filled."""
    remembering, plain = DPRDLoss(6, memory=3), DPRDLoss(6)
    student, teacher = random_maps((6, 5, 9), 3, 0, batch=4), random_maps((6, 5, 9), 8, 1, batch=4)
    foreground = random_valid((6, 5, 9), batch=4)
    torch.manual_seed(0)
    adapter = remembering.projection(3, 8, 3, grid=(6, 5, 9)).double()
    first = remembering(student[:2], teacher[:2], adapter, foreground=foreground[:2])
    torch.testing.assert_close(first, plain(student[:2], teacher[:2], adapter_of(plain, student, teacher),
                                            foreground=foreground[:2]))  # fmt: skip
    assert adapter.recent.count == 2
    ours = student[2:].clone().requires_grad_()
    second = remembering(ours, teacher[2:], adapter, foreground=foreground[2:])
    second.backward()
    assert adapter.recent.count == 3 and ours.grad.abs().max() > 0
    newest = masked_averages((student[2:], teacher[2:]), foreground[2:], torch.float64)
    for kept, new in zip((adapter.recent.student, adapter.recent.teacher), newest, strict=True):
        torch.testing.assert_close(kept[:2], new)

    vectors = []
    for layer, features in ((adapter.student, student), (adapter.teacher, teacher)):
        pooled = masked_averages((features,), foreground, torch.float64)[0]
        vectors.append(layer(pooled).flatten(1)[[2, 3, 0, 1]])
    pairs = [(i, j) for i in range(2) for j in range(i + 1, 4)]
    lines = [torch.stack([one[i] - one[j] for i, j in pairs]) for one in vectors]
    lines = [(one / (one.norm(dim=1).mean() + 1e-6)) for one in lines]
    expected = F.smooth_l1_loss(*lines, reduction="sum") / len(pairs)
    expected = expected + 0.5 * F.smooth_l1_loss(*(one.norm(dim=1) for one in lines))
    torch.testing.assert_close(second, expected)


def in_a_process(rank, meeting, out):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save(of_a_share(slice(0, 2) if rank == 0 else slice(2, 3)), f"{out}/{rank}.pth")
    dist.destroy_process_group()


def of_a_share(share):
    """The loss of two batches, the second beside remembered cases, and the gradients for three cases."""
    loss = DPRDLoss(6, memory=2)
    torch.manual_seed(0)
    adapter = loss.projection(3, 8, 2, grid=(6, 5)).double()
    students, values = [], []
    for seed in (0, 2):
        student = random_maps((6, 5), 3, seed, batch=3)[share].requires_grad_()
        teacher, foreground = random_maps((6, 5), 8, seed + 1, batch=3)[share], random_valid((6, 5), seed, 3)[share]
        values.append(loss(student, teacher, adapter, foreground=foreground))
        students.append(student)
    sum(values).backward()
    return [one.detach() for one in values], [one.grad for one in (*students, *adapter.parameters())]


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_pairs_are_those_of_the_joint_batch(tmp_path):
    """Two cases in one process and one in the other; the mean of the gradients over both is that of one process."""
    multiprocessing.start_processes(in_a_process, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    values, gradients = of_a_share(slice(None))
    found = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    for ours, _ in found:
        torch.testing.assert_close(ours, values)
    (first, second), features = (gradient for _, gradient in found), 2
    for ours, theirs, expected in zip(first[:features], second[:features], gradients[:features], strict=True):
        torch.testing.assert_close(torch.cat([ours, theirs]) / 2, expected)
    for ours, theirs, expected in zip(first[features:], second[features:], gradients[features:], strict=True):
        torch.testing.assert_close((ours + theirs) / 2, expected)


def test_stage_weights_are_the_authors_or_between_them():
    loss = DPRDLoss()
    assert loss.stage_weights(6, 3) == pytest.approx([0.05, 0.10, 0.10, 0.15, 0.25, 0.35])
    assert loss.stage_weights(1, 3) == [1]
    three = [0.05, (0.10 + 0.15) / 2, 0.35]
    assert loss.stage_weights(3, 2) == pytest.approx([weight / sum(three) for weight in three])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"masked": 1}, "masked must be true or false, got 1"),
        ({"length_weight": -1}, "length_weight must be a number of at least 0, got -1"),
        ({"smoothness": 0}, "smoothness must be a number above 0, got 0"),
        ({"memory": -1}, "memory must be a positive integer, got -1"),
        ({"memory": False}, "memory must be a positive integer, got False"),
        ({"eps": 0}, "eps must be a number above 0, got 0"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DPRDLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "foreground", "message"),
    [
        ((2, 3, 8, 8), (2, 5, 8, 9), (2, 1, 8, 8), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        (
            (2, 4, 8, 8),
            (2, 5, 8, 8),
            (2, 1, 8, 8),
            r"student's projection goes from 3 to 7 channels in 2-D, expected 4",
        ),
        (
            (2, 3, 8, 8),
            (2, 6, 8, 8),
            (2, 1, 8, 8),
            r"teacher's projection goes from 5 to 7 channels in 2-D, expected 6",
        ),
        ((2, 3, 8, 8), (2, 5, 8, 8), (2, 8, 8), r"foreground must be boolean \(B, 1, \*spatial\) with batch size 2"),
        ((2, 3, 8, 8), (2, 5, 8, 8), (1, 1, 8, 8), r"in 2-D, got torch.bool \(1, 1, 8, 8\)"),
    ],
)
def test_input_errors(student, teacher, foreground, message):
    loss, mask = DPRDLoss(7), torch.ones(foreground, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher), loss.projection(3, 5, 2), foreground=mask)


def test_a_memory_needs_a_grid_and_keeps_to_it():
    loss = DPRDLoss(7, memory=2)
    with pytest.raises(ValueError, match="a memory needs the grid of the stage's features"):
        loss.projection(3, 5, 2)
    adapter = loss.projection(3, 5, 2, grid=(8, 8))
    with pytest.raises(
        ValueError, match=r"memory holds pooled features \(3, 2, 2\), those of the batch are \(3, 4, 2\)"
    ):
        loss(torch.zeros(2, 3, 16, 8), torch.zeros(2, 5, 16, 8), adapter)
