import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.losses import IFVDLoss
from tests.losses.random_maps import SHAPES, random_maps


def random_classes(shape, seed=0, batch=2, classes=3, ignored=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1 if ignored else 0, classes, (batch, *shape), generator=generator)


def literal(student, teacher, classes):
    """Wang et al., eq. 1-3: one image, one class, one voxel after the other."""
    total, count = 0.0, 0
    for image in range(student.shape[0]):
        for number in classes[image].unique():
            if number < 0:
                continue
            member = classes[image] == number
            maps = []
            for features in (student, teacher):
                own = features[image][:, member]
                centre = own.mean(1)
                maps.append([F.cosine_similarity(voxel, centre, dim=0) for voxel in own.t()])
            total += sum((s - t) ** 2 for s, t in zip(*maps, strict=True))
            count += int(member.sum())
    return total / count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_literal_equation(shape):
    student, teacher, classes = random_maps(shape, 3, 0), random_maps(shape, 8, 1), random_classes(shape)
    torch.testing.assert_close(IFVDLoss()(student, teacher, classes=classes), literal(student, teacher, classes))
    more = IFVDLoss()(student, teacher, classes=classes, num_classes=7)
    torch.testing.assert_close(more, literal(student, teacher, classes))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_at_equality_only(shape):
    teacher, classes = random_maps(shape, 4, 0), random_classes(shape, classes=2)
    assert IFVDLoss()(teacher.clone(), teacher, classes=classes) == 0
    assert IFVDLoss()(random_maps(shape, 4, 1), teacher, classes=classes) > 0


def test_annotation_is_reduced_to_the_first_voxel_of_every_cell():
    """As in the authors' code."""
    student, teacher, fine = random_maps((4, 6, 5), 3, 0), random_maps((4, 6, 5), 8, 1), random_classes((8, 12, 20))
    expected = IFVDLoss()(student, teacher, classes=fine[:, ::2, ::2, ::4])
    torch.testing.assert_close(IFVDLoss()(student, teacher, classes=fine), expected)
    assert not torch.isclose(IFVDLoss()(student, teacher, classes=fine[:, 1::2, 1::2, 2::4]), expected)


def test_the_size_of_the_features_does_not_matter():
    student, teacher, classes = random_maps((4, 5, 6), 3, 0), random_maps((4, 5, 6), 8, 1), random_classes((4, 5, 6))
    size = torch.tensor([5.0, 0.1], dtype=torch.float64).view(2, 1, 1, 1, 1)
    expected = IFVDLoss()(student, teacher, classes=classes)
    torch.testing.assert_close(IFVDLoss()(size * student, teacher, classes=classes), expected)


def test_ignored_voxels_do_not_matter():
    student, teacher, classes = random_maps((4, 5, 6), 3, 0), random_maps((4, 5, 6), 8, 1), random_classes((4, 5, 6))
    elsewhere = torch.where(classes[:, None] < 0, 1e3, student)
    expected = IFVDLoss()(student, teacher, classes=classes)
    torch.testing.assert_close(IFVDLoss()(elsewhere, teacher, classes=classes), expected)
    student.requires_grad_()
    nothing = IFVDLoss()(student, teacher, classes=torch.full_like(classes, -1))
    nothing.backward()
    assert nothing == 0 and student.grad.abs().max() == 0


def test_features_of_zero_stay_finite():
    student, classes = torch.zeros(1, 3, 4, 4, requires_grad=True), random_classes((4, 4), batch=1)
    value = IFVDLoss()(student, random_maps((4, 4), 3, 0, torch.float32, 1), classes=classes)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_voxel_without_any_active_channel_moves_with_its_centre_only(dtype):
    """It has no direction. Through eps its gradient was ten million times the others', and infinite in float16."""
    student, teacher = random_maps((5, 6), 4, 0, dtype), random_maps((5, 6), 3, 1, dtype)
    student[0, :, 0, 0] = 0
    student.requires_grad_()
    IFVDLoss()(student, teacher, classes=torch.ones(2, 5, 6, dtype=torch.long)).backward()
    assert student.grad[0, :, 0, 0].norm() < student.grad.flatten(2).norm(dim=1).max() < 0.1


def test_a_class_whose_voxels_cancel_has_no_gradient():
    """Nor has its centre a direction."""
    student = torch.tensor([[[[1.0, -1.0]], [[2.0, -2.0]]]], requires_grad=True)
    value = IFVDLoss()(student, random_maps((1, 2), 3, 0, torch.float32, 1), classes=torch.zeros(1, 1, 2).long())
    value.backward()
    assert value > 0 and student.grad.abs().max() == 0


def test_gradient_reaches_the_student_only():
    student, teacher = random_maps((5, 6), 3, 0).requires_grad_(), random_maps((5, 6), 8, 1).requires_grad_()
    IFVDLoss()(student, teacher, classes=random_classes((5, 6))).backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3)], ids=str)
def test_gradcheck_through_the_centres(shape):
    student, teacher, classes = random_maps(shape, 2, 0).requires_grad_(), random_maps(shape, 4, 1), None
    classes = random_classes(shape)
    assert torch.autograd.gradcheck(lambda s: IFVDLoss()(s, teacher, classes=classes), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single_precision(dtype):
    student, teacher = random_maps((8, 9, 5), 3, 0, dtype).requires_grad_(), random_maps((8, 9, 5), 8, 1, dtype)
    classes = random_classes((8, 9, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = IFVDLoss()(student, teacher, classes=classes)
    value.backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    torch.testing.assert_close(value, IFVDLoss()(student.float(), teacher.float(), classes=classes))


def test_option_errors():
    with pytest.raises(ValueError, match="eps must be a number above 0, got 0"):
        IFVDLoss(0)
    with pytest.raises(ValueError, match="eps must be within single precision, got 1e-50"):
        IFVDLoss(1e-50)


@pytest.mark.parametrize(
    ("student", "teacher", "classes", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 9), (2, 8, 8), r"student features lie on \(8, 8\), teacher's on \(8, 9\)"),
        ((2, 3, 8), (2, 3, 8), (2, 8), r"expected student features \(B, C, \*spatial\) in 2-D or 3-D"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (2, 1, 8, 8), r"classes must be whole numbers \(B, \*spatial\) with batch size 2"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (1, 8, 8), r"with batch size 2, got torch.int64 \(1, 8, 8\)"),
    ],
)
def test_input_errors(student, teacher, classes, message):
    with pytest.raises(ValueError, match=message):
        IFVDLoss()(torch.zeros(student), torch.zeros(teacher), classes=torch.zeros(classes, dtype=torch.long))


def test_there_is_at_least_one_class():
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        IFVDLoss()(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), classes=torch.ones(1, 2, 2).long(), num_classes=0)


def test_classes_must_be_whole_numbers():
    with pytest.raises(ValueError, match="classes must be whole numbers .*, got torch.float32"):
        IFVDLoss()(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), classes=torch.zeros(1, 2, 2))
