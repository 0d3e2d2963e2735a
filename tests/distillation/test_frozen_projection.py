"""A frozen projection keeps its random start, and everything else trains as before."""

import pytest
import torch

from nnunet_kd.distillation.methods import DCD, DUAL_SELF, FITNETS, FREEKD
from nnunet_kd.networks.stages import EncoderStages

STUDENT = EncoderStages((4, 8), ((1, 1, 1), (2, 2, 2)))
TEACHER = EncoderStages((16, 32), ((1, 1, 1), (2, 2, 2)))


def adapters_of(method, seed=0, **numbers):
    torch.manual_seed(seed)
    return method.changed(numbers).build(100).adapters(STUDENT, TEACHER, decoder=1)


@pytest.mark.parametrize("method", [DCD, FITNETS, FREEKD, DUAL_SELF], ids=lambda method: method.name)
def test_the_same_random_start_is_learned_or_frozen(method):
    learned, frozen = (adapters_of(method, projection=kind) for kind in ("learned", "frozen"))
    assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), frozen.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in learned.parameters())
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in frozen.named_parameters() if "prompts" in name}


def test_prompts_of_a_frozen_projection_are_tuned():
    assert any(parameter.requires_grad for parameter in adapters_of(FREEKD, projection="frozen").parameters())


@pytest.mark.parametrize("transform", ["exact", "published"])
def test_the_student_gets_the_same_gradient_from_a_frozen_projection(transform):
    gradients = []
    for projection in ("learned", "frozen"):
        phi = adapters_of(DCD, projection=projection, transform=transform)[0]
        loss = DCD.changed({"transform": transform}).build(100).loss
        student, teacher = (
            torch.randn(1, width, 6, 5, 7, generator=torch.Generator().manual_seed(width)) for width in (4, 16)
        )
        student.requires_grad_()
        loss(student, teacher, phi).backward()
        gradients.append(student.grad)
        assert (phi.weight.grad is None) == (projection == "frozen")
    torch.testing.assert_close(*gradients)


def test_the_record_mentions_a_frozen_projection_alone():
    """Records of trainings from before the option compare equal."""
    texts = [str(DCD.changed({"projection": kind}).build(100)) for kind in ("learned", "frozen")]
    assert texts == [str(DCD.build(100)), f"{DCD.build(100)}, projection frozen"]
    assert DCD.build(100).options == "dcd, convex False, stages None"
