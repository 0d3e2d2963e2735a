"""Students whose classes follow from their teacher's, and teachers that see the images at another resolution."""

import copy

import pytest
import torch
from torch import nn

from nnunet_kd.pruning import MappedHeads, prune, selected_weights
from nnunet_kd.pruning.ordering import sort_channels
from nnunet_kd.pruning.reconstruction import reconstruct
from tests.pruning.networks import EVERYWHERE, images, thinner, unet


def first_two(logits):
    """Drop the last class, which becomes the first."""
    chances = logits.log_softmax(1)
    return torch.stack((torch.logaddexp(chances[:, 0], chances[:, 2]), chances[:, 1]), 1)


DROPPED = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


class Segmenter(nn.Module):
    """Two layers and a head."""

    def __init__(self, width, classes):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        return self.head(torch.tanh(self.norm(self.first(images))))


def mapped(layer="head", mixing=DROPPED, logits=first_two):
    return MappedHeads(frozenset({layer}), logits, mixing)


def test_a_class_that_never_occurs_can_be_dropped():
    """The student then gives the teacher's probabilities of the others."""
    teacher, student = Segmenter(6, 3).eval(), Segmenter(6, 2)
    with torch.no_grad():
        teacher.head.bias[2] = -40
    batches = images(2, 2, 16, 16)
    prune(teacher, student, batches, heads="classes", mapped=mapped())
    student.eval()
    for batch in batches:
        torch.testing.assert_close(student(batch).softmax(1), teacher(batch)[:, :2].softmax(1), rtol=0, atol=1e-2)


def test_merged_classes_keep_their_volume():
    teacher, student = Segmenter(12, 3).eval(), Segmenter(6, 2)
    batches = images(2, 2, 16, 16)
    prune(teacher, student, batches, heads="classes", mapped=mapped())
    student.eval()
    wanted = torch.cat([first_two(teacher(batch)).softmax(1) for batch in batches])
    given = torch.cat([student(batch).softmax(1) for batch in batches])
    torch.testing.assert_close(given.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0, atol=1e-2)
    assert float((given - wanted).detach().abs().mean()) < 0.1


def test_heads_are_mixed_before_the_fit():
    teacher, student = Segmenter(6, 3), Segmenter(3, 2)
    mixing = torch.tensor([[0, 0, 1.0], [0.5, 0.5, 0]])
    weights = selected_weights(teacher, student, mapped(mixing=mixing))
    last, first, second = (teacher.head.weight[head, ::2] for head in (2, 0, 1))
    torch.testing.assert_close(weights["head.weight"], 2 * torch.stack((last, (first + second) / 2)))
    torch.testing.assert_close(weights["head.bias"], mixing @ teacher.head.bias)
    assert torch.equal(weights["first.weight"], teacher.first.weight[::2])
    with pytest.raises(ValueError, match="head.weight .* cannot be taken"):
        selected_weights(Segmenter(6, 2), Segmenter(3, 3))


@pytest.mark.parametrize("maps", [True, False])
def test_channels_that_only_a_dropped_class_needs_are_not_kept(maps):
    teacher, student = Segmenter(4, 3).eval(), Segmenter(2, 2 if maps else 3)
    with torch.no_grad():
        teacher.head.weight[:2, :2] = 1e-3  # both classes that stay need the last two channels
        teacher.head.weight[2, 2:] = 1e-3
        teacher.head.weight[2, :2] = 100
    for value, channel in enumerate(teacher.norm.weight.data):
        channel.fill_(value + 1)  # so that each channel can be recognised
    sort_channels(teacher, student, images(2, 2, 16, 16), mapped=mapped() if maps else None)
    kept = teacher.norm.weight[[0, 2]].tolist()  # a student with two of four channels takes these
    assert sorted(kept) == [3, 4] if maps else sorted(kept) != [3, 4]


def twice(batches):
    """Return the images with every pixel repeated along both axes."""
    return [batch.repeat_interleave(2, 2).repeat_interleave(2, 3) for batch in batches]


def test_outputs_at_another_resolution_are_resampled():
    """A layer that looks at single pixels gives every one of four equal pixels the output of one."""
    teacher = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1)).eval()
    batches = images(2, 2, 9, 8)
    expected = thinner(teacher, nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 4, 1)))
    student = copy.deepcopy(expected)
    shares = reconstruct(teacher, expected, batches, EVERYWHERE)
    assert reconstruct(teacher, student, batches, EVERYWHERE, teacher_batches=twice(batches)) == pytest.approx(shares)
    for own, weight in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, weight, rtol=1e-3, atol=1e-4)


def test_a_transposed_convolution_is_fitted_at_another_resolution():
    """Of four equal windows side by side, each pixel of the student's window sees the mean."""
    teacher, student = nn.ConvTranspose2d(2, 4, 2, stride=2), nn.ConvTranspose2d(2, 2, 2, stride=2)
    student.load_state_dict(selected_weights(teacher, student))
    batches = images(1, 2, 5, 6)
    explained = reconstruct(teacher, student, batches, EVERYWHERE, ridge=1e-12, teacher_batches=twice(batches))
    mean = teacher.weight[:, ::2].mean((2, 3), keepdim=True).expand_as(student.weight)
    torch.testing.assert_close(student.weight, mean, rtol=1e-4, atol=1e-5)
    assert explained == {"": pytest.approx(1)}


@pytest.mark.parametrize("size", [(16, 24, 16), (32, 24, 24)])
def test_a_network_is_pruned_at_another_resolution(size):
    """Its channels are chosen and its layers fitted by what the teacher sees."""
    teacher, student, batches = unet(8), unet(4), images(1, 2, 16, 16, 16, count=2)
    seen = [nn.functional.interpolate(batch, size, mode="trilinear") for batch in batches]
    by_hand = copy.deepcopy(teacher)
    sort_channels(by_hand, unet(4), seen)
    expected = thinner(by_hand, unet(4))
    explained = reconstruct(by_hand, expected, batches, heads="classes", teacher_batches=seen)
    pruned = prune(teacher, student, batches, heads="classes", teacher_images=seen)
    assert pruned.explained == explained and max(explained.values()) > 0.3
    for own, weight in zip(student.parameters(), expected.parameters(), strict=True):
        assert torch.equal(own, weight)
    at_its_own = unet(8)
    sort_channels(at_its_own, unet(4), batches)
    assert not torch.equal(
        at_its_own.encoder.stages[0][0].convs[0].conv.weight, by_hand.encoder.stages[0][0].convs[0].conv.weight
    )
