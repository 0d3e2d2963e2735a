import pytest
import torch
from torch import nn

from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.teacher import Teacher
from tests.small_networks import unet

IMAGES = torch.randn(2, 2, 16, 12, generator=torch.Generator().manual_seed(0))


def teachers(count=3, width=4, **options):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(Teacher(unet(width), logits=True, deep_supervision=True, **options))
    return made


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_probabilities_and_features_are_averaged(regions):
    members = teachers()
    logits, features = TeacherEnsemble(members, regions)(IMAGES)
    outputs = [member(IMAGES) for member in members]
    activation = torch.sigmoid if regions else (lambda z: torch.softmax(z, 1))
    assert len(logits) == len(outputs[0][0]) and len(features) == 3
    for scale, given in enumerate(logits):
        expected = torch.stack([activation(output[0][scale]) for output in outputs]).mean(0)
        torch.testing.assert_close(activation(given), expected)
    for stage, given in enumerate(features):
        torch.testing.assert_close(given, torch.stack([output[1][stage] for output in outputs]).mean(0))


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_equal_teachers_give_the_logits_of_one(regions):
    (member,) = teachers(1)
    logits, _ = TeacherEnsemble([member, member], regions)(IMAGES)
    for given, expected in zip(logits, member(IMAGES)[0], strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_extreme_logits_remain_finite():
    ensemble = TeacherEnsemble(teachers(2), regions=True)
    far = torch.tensor([80.0, -80.0])
    torch.testing.assert_close(ensemble._mean([far, far]), far)
    assert torch.isfinite(ensemble._mean([far, -far])).all()


def test_widths_that_differ_are_refused_for_features_only():
    with pytest.raises(
        ValueError, match=r"averaged only if all have the same stages: teacher 0 has widths \[4, 8, 16\]"
    ):
        TeacherEnsemble([*teachers(1), *teachers(1, width=8)], regions=False)
    logits_only = [*teachers(1, features=False), *teachers(1, width=8, features=False)]
    logits, features = TeacherEnsemble(logits_only, regions=False)(IMAGES)
    assert logits[0].shape == (2, 3, 16, 12) and features == []


def test_only_shared_scales_are_returned():
    deep, flat = Teacher(unet(), logits=True, deep_supervision=True), Teacher(unet(), logits=True)
    assert [tuple(z.shape[2:]) for z in TeacherEnsemble([deep, flat], regions=False)(IMAGES)[0]] == [(16, 12)]


def test_no_gradient_and_no_training_mode():
    ensemble = TeacherEnsemble(teachers(2), regions=False).train()
    logits, features = ensemble(IMAGES.clone().requires_grad_())
    assert not any(tensor.requires_grad for tensor in logits + features)
    assert not any(p.requires_grad for p in ensemble.parameters())
    assert not any(m.training for m in ensemble.modules() if isinstance(m, nn.InstanceNorm2d))


def test_no_common_decoder():
    with pytest.raises(NotImplementedError, match="no common decoder"):
        TeacherEnsemble(teachers(2), regions=False).decode([])
