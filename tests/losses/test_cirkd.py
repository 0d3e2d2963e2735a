"""Cross-image relational distillation; ``cirkd.npz`` holds inputs, outputs and gradients of
``losses/cirkd_mini_batch.py`` and ``losses/cirkd_memory.py`` of winycg/CIRKD at dab64db, in float32 on a CPU: the
relations of a batch, and three steps with memories in which the memory of regions wraps around.

For a class with n voxels in an image, that code remembers some of the image's first n voxels, of whatever class. In the
steps recorded for the memory of voxels these are the voxels of the class: an image has one class, and ends with ignored
voxels.
"""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.losses import CIRKDLoss
from nnunet_kd.losses.relations import pooled
from tests.losses.random_maps import SHAPES, random_maps

RECORDED = np.load(Path(__file__).with_name("cirkd.npz"))
SMALL = {"pixel_memory": 6, "region_memory": 3, "pixels": 2}
# options of the recorded memories, from which every entry is drawn and which every voxel enters
RECORDED_OPTIONS = {"pixel_memory": 40, "region_memory": 5, "pixels": 16}


def recorded(name):
    return torch.from_numpy(RECORDED[name])


def random_classes(shape, seed=0, ignored=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1 if ignored else 0, 3, (2, *shape), generator=generator)


def built(loss, student=3, teacher=8, dim=3, dtype=torch.float64):
    torch.manual_seed(0)
    return loss.projection(student, teacher, dim, 3).to(dtype)


def recorded_memory():
    memory = CIRKDLoss(**RECORDED_OPTIONS).projection(4, 6, 2, 3)
    memory.head[0].weight.data, memory.head[3].weight.data = recorded("first"), recorded("last")
    memory.pixels.copy_(recorded("pixels"))
    memory.regions.copy_(recorded("regions"))
    return memory


def assert_close(ours, theirs):
    """Relative to the largest element, since float32 rounds sums to that."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_relations_of_a_batch_equal_those_of_the_authors_code():
    student = recorded("student").requires_grad_()
    value = CIRKDLoss()(student, recorded("teacher"), classes=random_classes((3, 5)))
    value.backward()
    torch.testing.assert_close(value, recorded("within"), rtol=1e-5, atol=0)
    assert_close(student.grad, recorded("within_gradient"))


@pytest.mark.parametrize(("kind", "weights"), [("pixel", (1, 0)), ("region", (0, 1))])
def test_memories_equal_those_of_the_authors_code(kind, weights):
    loss = CIRKDLoss(pixel_weight=weights[0], region_weight=weights[1], **RECORDED_OPTIONS)
    memory = recorded_memory()
    for step in range(3):
        student, teacher = recorded(f"{step}_student").requires_grad_(), recorded(f"{step}_teacher")
        classes = recorded(f"{step}_{kind}_labels").long()
        within = CIRKDLoss()(student, teacher, classes=classes)
        value = loss(student, teacher, memory, classes=classes, num_classes=3) - within
        torch.testing.assert_close(value, recorded(f"{step}_{kind}"), rtol=1e-5, atol=0)
        of_student, of_head = torch.autograd.grad(value, [student, memory.head[0].weight])
        assert_close(of_student, recorded(f"{step}_{kind}_gradient"))
        assert_close(of_head, recorded(f"{step}_{kind}_head"))
        assert_close(memory.regions, recorded(f"{step}_{kind}_regions"))


def literal(student, teacher, classes, memory):
    """One anchor, one image, one entry after the other; maps ``(B, voxels, C)``."""

    def divergence(ours, theirs):
        p, q = (F.softmax(torch.stack(one) / 0.1, 0) for one in (theirs, ours))
        return (p * (p / q).log()).sum().item()

    def relations(anchor, others):
        return [F.cosine_similarity(anchor, other, dim=0) for other in others]

    images = range(len(student))
    within = [
        divergence(relations(student[i][x], student[j]), relations(teacher[i][x], teacher[j]))
        for i in images
        for j in images
        for x in range(student.shape[1])
    ]
    first, norm, _, last = memory.head
    inner = student @ first.weight.T
    mean, variance = inner.mean((0, 1)), inner.var((0, 1), correction=0)
    heads = torch.relu((inner - mean) / (variance + norm.eps).sqrt()) @ last.weight.T
    anchors = [(i, x) for i in images for x in range(student.shape[1]) if classes[i][x] >= 0]
    parts = [sum(within) / len(within)]
    for entries in (memory.pixels, memory.regions):
        others = entries.flatten(0, 1)
        each = [divergence(relations(heads[i][x], others), relations(teacher[i][x], others)) for i, x in anchors]
        parts.append(sum(each) / len(each))
    return parts[0] + 0.1 * parts[1] + 0.1 * parts[2]


@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 3)], ids=str)
def test_equals_the_literal_equation(shape):
    loss, student, teacher = CIRKDLoss(**SMALL), random_maps(shape, 3, 0), random_maps(shape, 8, 1)
    classes, memory = random_classes(shape), built(loss, dim=len(shape))
    value = loss(student, teacher, memory, classes=classes)
    maps = [pooled(one, 8, torch.float64) for one in (student, teacher)]
    assert value.item() == pytest.approx(literal(*maps, classes.flatten(1), memory))


def test_maps_are_pooled_and_a_box_has_the_class_of_its_central_voxel():
    loss = CIRKDLoss(grid=2, **SMALL)
    student, teacher, fine = random_maps((4, 6, 8), 3, 0), random_maps((4, 6, 8), 8, 1), random_classes((4, 6, 8))
    coarse = [F.avg_pool3d(maps, (2, 3, 4)) for maps in (student, teacher)]
    values = []
    for maps, classes in (((student, teacher), fine), (coarse, fine[:, 1::2, 1::3, 2::4])):
        torch.manual_seed(1)
        values.append(loss(*maps, built(loss), classes=classes))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher = random_maps(shape, 4, 0)
    classes = random_classes(shape)
    assert CIRKDLoss()(teacher.clone(), teacher, classes=classes).abs() < 1e-12
    assert CIRKDLoss()(random_maps(shape, 4, 1), teacher, classes=classes) > 1e-3


def test_the_size_of_the_features_does_not_matter():
    loss, student, teacher = CIRKDLoss(**SMALL), random_maps((4, 5), 3, 0), random_maps((4, 5), 8, 1)
    classes, memory = random_classes((4, 5)), built(loss, dim=2)
    values = []
    for size in (1, 50):
        torch.manual_seed(1)
        values.append(loss(size * student, teacher, copy.deepcopy(memory), classes=classes))
    torch.testing.assert_close(*values, rtol=1e-3, atol=0)  # but for the eps of batch normalisation


def test_the_memory_keeps_the_newest_of_every_class():
    loss = CIRKDLoss(pixel_memory=5, region_memory=3, pixels=2)
    memory = built(loss, dim=2)
    unseen = memory.pixels[2].clone()
    for step in range(3):
        teacher = random_maps((3, 4), 8, step)
        classes = torch.zeros(2, 3, 4, dtype=torch.long)
        classes[0, 0, 0], classes[0, 0, 1:] = 1, -1  # one voxel of class 1, none of class 2
        loss(random_maps((3, 4), 3, step), teacher, memory, classes=classes, num_classes=3)
        units = F.normalize(teacher, dim=1)
        torch.testing.assert_close(memory.pixels[1, step], units[0, :, 0, 0])
        torch.testing.assert_close(memory.regions[1, step], units[0, :, 0, 0])
        newest = F.normalize(units[1].flatten(1).mean(1), dim=0)
        torch.testing.assert_close(memory.regions[0, (2 * step + 1) % 3], newest)
        own = [units[i].flatten(1).T for i in range(2)]
        for number in range(4):  # two voxels of each image
            entry = memory.pixels[0, (4 * step + number) % 5]
            image = own[number // 2]
            which = (image - entry).abs().sum(1).argmin()
            torch.testing.assert_close(entry, image[which])
            assert classes[number // 2].flatten()[which] == 0
    assert memory.next_pixel.tolist() == [12 % 5, 3, 0] and memory.next_region.tolist() == [0, 0, 0]
    assert torch.equal(memory.pixels[2], unseen)


def test_a_batch_of_more_voxels_than_the_memory_fills_it():
    loss = CIRKDLoss(pixel_memory=3, region_memory=1, pixels=16)
    memory = built(loss, dim=2)
    teacher = random_maps((3, 4), 8, 1)
    loss(random_maps((3, 4), 3, 0), teacher, memory, classes=torch.zeros(2, 3, 4, dtype=torch.long))
    units = F.normalize(teacher, dim=1)[0].flatten(1).T
    assert all((units - entry).abs().sum(1).min() < 1e-6 for entry in memory.pixels[0])
    assert memory.next_pixel.tolist() == [0, 0, 0]


def test_features_that_are_not_finite_never_enter_the_memory():
    loss = CIRKDLoss(**SMALL)
    memory = built(loss, dim=2)
    teacher = random_maps((3, 4), 8, 1)
    teacher[:, 0, 0] = math.nan
    loss(random_maps((3, 4), 3, 0), teacher, memory, classes=torch.zeros(2, 3, 4, dtype=torch.long))
    assert memory.pixels.isfinite().all() and memory.regions.isfinite().all()
    assert memory.next_region.tolist() == [2, 0, 0]


def test_a_part_of_the_memory_is_drawn():
    """With as many random numbers as entries, one class more or less is drawn in expectation."""
    loss = CIRKDLoss(pixel_weight=0, region_memory=50, region_contrasts=30)
    student, teacher, classes = random_maps((3, 4), 3, 0), random_maps((3, 4), 8, 1), random_classes((3, 4))
    values = []
    for seed in (1, 1, 2):
        memory = built(loss, dim=2)
        torch.manual_seed(seed)
        values.append(loss(student, teacher, memory, classes=classes).item())
    assert values[0] == values[1] != values[2]
    every = CIRKDLoss(pixel_weight=0, region_memory=50, region_contrasts=150)
    assert values[0] != every(student, teacher, built(every, dim=2), classes=classes).item()


def test_ignored_voxels_are_no_anchors():
    loss = CIRKDLoss(**SMALL)
    student, teacher = random_maps((3, 4), 3, 0).requires_grad_(), random_maps((3, 4), 8, 1)
    nothing = torch.full((2, 3, 4), -1)
    memory = built(loss, dim=2)
    before = copy.deepcopy(memory.state_dict())
    value = loss(student, teacher, memory, classes=nothing)
    assert value == CIRKDLoss()(student, teacher, classes=nothing)
    assert all(torch.equal(entry, before[name]) for name, entry in memory.state_dict().items())


def test_gradient_reaches_student_and_head_only():
    loss = CIRKDLoss(**SMALL)
    student, teacher = random_maps((4, 5), 3, 0).requires_grad_(), random_maps((4, 5), 8, 1).requires_grad_()
    memory = built(loss, dim=2)
    loss(student, teacher, memory, classes=random_classes((4, 5))).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    assert len([*memory.parameters()]) == 4 and all(one.grad.abs().max() > 0 for one in memory.parameters())


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck(shape):
    loss, student, teacher = CIRKDLoss(**SMALL), random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1)
    memory, classes = built(loss, 2, 4, len(shape)), random_classes(shape)

    def value(student, *_):
        torch.manual_seed(1)
        for buffer, start in zip(memory.buffers(), starts, strict=True):
            buffer.copy_(start)  # a step changes them
        return loss(student, teacher, memory, classes=classes)

    starts = [buffer.clone() for buffer in memory.buffers()]
    assert torch.autograd.gradcheck(value, (student, *memory.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    loss = CIRKDLoss(**SMALL)
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    classes, memories = random_classes((8, 9, 5)), [built(loss, dtype=torch.float32) for _ in range(2)]
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, memories[0], classes=classes)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.manual_seed(1)
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), memories[1], classes=classes))


@pytest.mark.parametrize(
    ("of_features", "of_adapter"), [(torch.float64, torch.float32), (torch.float32, torch.float16)]
)
def test_an_adapter_of_another_type_is_used_in_that_of_the_features(of_features, of_adapter):
    loss = CIRKDLoss(**SMALL)
    memory = built(loss, dim=2, dtype=of_adapter)
    student, teacher = random_maps((4, 5), 3, 0, of_features), random_maps((4, 5), 8, 1, of_features)
    before = memory.pixels.clone()
    value = loss(student, teacher, memory, classes=random_classes((4, 5)))
    value.backward()
    assert value.dtype == of_features and memory.head[0].weight.grad.dtype == of_adapter
    assert memory.pixels.dtype == of_adapter and not torch.equal(memory.pixels, before)


def test_without_weights_there_is_no_memory():
    assert isinstance(CIRKDLoss(pixel_weight=0, region_weight=0).projection(3, 8, 2, 3), torch.nn.Identity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"pixel_weight": -1}, "pixel_weight must be a number of at least 0, got -1"),
        ({"region_weight": None}, "region_weight must be a number of at least 0, got None"),
        ({"grid": 17}, "grid must be at most 16, got 17"),
        ({"pixel_memory": 0}, "pixel_memory must be a positive integer, got 0"),
        ({"region_memory": 10**6}, "region_memory must be at most 100000, got 1000000"),
        ({"pixels": 0.5}, "pixels must be a positive integer, got 0.5"),
        ({"pixel_contrasts": 0}, "pixel_contrasts must be a positive integer, got 0"),
        ({"region_contrasts": True}, "region_contrasts must be a positive integer, got True"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        CIRKDLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "classes", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 9), (2, 8, 8), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((2, 3, 8), (2, 3, 8), (2, 8), r"expected student features \(B, C, \*spatial\) in 2-D or 3-D"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (2, 1, 8, 8), r"classes must be whole numbers \(B, \*spatial\) with batch size 2"),
    ],
)
def test_input_errors(student, teacher, classes, message):
    with pytest.raises(ValueError, match=message):
        CIRKDLoss()(torch.zeros(student), torch.zeros(teacher), classes=torch.zeros(classes, dtype=torch.long))


@pytest.mark.parametrize(
    ("projection", "num_classes", "message"),
    [
        (torch.nn.Conv2d(3, 8, 1), 3, "the projection must be one of CIRKDLoss.projection, got Conv2d"),
        (built(CIRKDLoss(**SMALL), 4), 3, "the memory is for 4 and 8 channels and 3 classes, got 3 and 8 channels"),
        (built(CIRKDLoss(**SMALL)), 4, "8 channels and 3 classes, got 3 and 8 channels and 4 classes"),
    ],
)
def test_a_projection_of_another_kind_is_refused(projection, num_classes, message):
    with pytest.raises(ValueError, match=message):
        CIRKDLoss()(
            random_maps((4, 5), 3, 0),
            random_maps((4, 5), 8, 1),
            projection,
            classes=random_classes((4, 5)),
            num_classes=num_classes,
        )
