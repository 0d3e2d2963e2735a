import copy
import itertools

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_kd.pruning.ordering import sort_channels
from nnunet_kd.pruning.reconstruction import reconstruct
from nnunet_kd.pruning.selection import channels_taken, selected_weights
from tests.pruning.networks import EVERYWHERE, images, thinner, unet, with_random_vectors


def chain(width):
    return nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))


def lost(teacher, taken, batches):
    """Return the variance of each output that regression on some hidden channels does not explain."""
    with torch.no_grad():
        rows = teacher[:2](torch.cat(batches)).movedim(1, -1).flatten(0, -2).double()
        given = teacher(torch.cat(batches)).movedim(1, -1).flatten(0, -2).double()
    rows, given = rows - rows.mean(0), given - given.mean(0)
    solution = torch.linalg.lstsq(rows[:, taken], given).solution
    return float(((rows[:, taken] @ solution - given).square().sum(0) / given.square().sum(0)).mean())


def taken(teacher, reordered, width):
    """Return the indices of the teacher's channels that a student takes after reordering."""
    weights = reordered[0].weight[channels_taken(len(teacher[0].weight), width)]
    return [int((teacher[0].weight == weight).flatten(1).all(1).nonzero()) for weight in weights]


def test_each_channel_minimises_the_loss():
    torch.manual_seed(0)
    teacher, batches = chain(12), images(2, 2, 9, 8)
    for width in (1, 3, 5):
        reordered = copy.deepcopy(teacher)
        assert sort_channels(reordered, chain(width), batches, EVERYWHERE) == 1
        greedy = []
        for _ in range(width):
            left = [channel for channel in range(12) if channel not in greedy]
            greedy.append(min(left, key=lambda channel: lost(teacher, [*greedy, channel], batches)))
        assert taken(teacher, reordered, width) == sorted(greedy)
        assert lost(teacher, greedy, batches) < lost(teacher, channels_taken(12, width), batches)


class Forked(nn.Module):
    """A skip connection: two layers read the first layer's output, one of them after other channels."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Conv2d(2, first, 3, padding=1)
        self.second = nn.Conv2d(first, second, 3, padding=1)
        self.last = nn.Conv2d(second + first, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        one = self.relu(self.first(x))
        two = self.relu(self.second(one))
        return self.last(torch.cat((two, one), 1))


def kept_share(read, group, weights, taken):
    """Return the share of a layer's output that the taken channels of a group explain, per kernel voxel.

    ``read`` is (positions, channels), ``group`` a slice of the channels, ``weights`` (outputs, channels, voxels).
    """
    read = read - read.mean(0)
    own = read[:, group]
    fitted = own[:, taken] @ torch.linalg.lstsq(own[:, taken], own).solution
    kept = torch.einsum("pi,oik->pok", fitted, weights[:, group]).square().sum((0, 2))
    return float((kept / torch.einsum("pi,oik->pok", read, weights).square().sum((0, 2))).mean())


def chosen(size, count, worth):
    """Choose channels one at a time, each the best in addition to those before."""
    taken = []
    for _ in range(count):
        left = [channel for channel in range(size) if channel not in taken]
        taken.append(max(left, key=lambda channel: worth([*taken, channel])))
    return sorted(taken)


@pytest.mark.parametrize("seed", range(6))
def test_all_layers_that_read_a_channel_count(seed):
    torch.manual_seed(seed)
    teacher, batches = Forked(9, 6), images(2, 2, 9, 8)
    reordered = copy.deepcopy(teacher)
    assert sort_channels(reordered, Forked(3, 2), batches, EVERYWHERE) == 2
    with torch.no_grad():
        one = teacher.first(torch.cat(batches)).relu()
        two = teacher.second(one).relu()
    one, both = (maps.movedim(1, -1).flatten(0, -2).double() for maps in (one, torch.cat((two, one), 1)))
    second, last = (layer.weight.detach().flatten(2).double() for layer in (teacher.second, teacher.last))
    narrow = chosen(6, 2, lambda taken: kept_share(both, slice(0, 6), last, taken))
    wide = chosen(
        9,
        3,
        lambda taken: kept_share(both, slice(6, 15), last, taken) + kept_share(one, slice(0, 9), second[narrow], taken),
    )
    for name, expected in (("first", wide), ("second", narrow)):
        bias = teacher.get_submodule(name).bias
        places = channels_taken(len(bias), len(expected))
        found = [int((bias == value).nonzero()) for value in reordered.get_submodule(name).bias[places]]
        assert found == expected, name


def test_the_choice_is_among_the_best():
    torch.manual_seed(0)
    teacher, batches = chain(8), images(2, 2, 9, 8)
    reordered = copy.deepcopy(teacher)
    sort_channels(reordered, chain(3), batches, EVERYWHERE)
    mine = lost(teacher, taken(teacher, reordered, 3), batches)
    all_losses = sorted(lost(teacher, list(some), batches) for some in itertools.combinations(range(8), 3))
    assert mine <= all_losses[5]  # of 56


def test_removed_outputs_do_not_count():
    """Channels that only removed outputs read are not taken, however large they are."""
    teacher = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    student = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        teacher[0].weight.copy_(torch.randn_like(teacher[0].weight))
        teacher[0].weight[:2] *= 10
        teacher[2].weight.zero_()
        teacher[2].weight[[0, 1], [0, 1]] = 5.0  # large weights
        teacher[2].weight[[2, 3], [2, 3]] = 1.0
        teacher[4].weight[:, :2] = 0
        teacher[4].weight[:, 2:] = torch.tensor([[1.0, 0.5], [0.5, -1.0]])[:, :, None, None]
        wanted = teacher[0].weight[2:].clone()
    sort_channels(teacher, student, images(2, 2, 8, 8))
    torch.testing.assert_close(teacher[0].weight[channels_taken(4, 2)], wanted)


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_teachers_output_is_kept_and_the_student_comes_nearer(kind, dim):
    teacher, batches = with_random_vectors(unet(16, dim, kind)), images(2, 2, *[16] * dim)
    unseen = images(2, 2, *[16] * dim, count=5)[-1]
    with torch.no_grad():
        wanted = teacher(unseen)
        every_fourth = thinner(teacher, unet(4, dim, kind))
        reconstruct(teacher, every_fourth, batches)
        assert sort_channels(teacher, unet(4, dim, kind), batches) > 5
        torch.testing.assert_close(teacher(unseen), wanted, rtol=1e-4, atol=1e-4)
        chosen = thinner(teacher, unet(4, dim, kind))
        reconstruct(teacher, chosen, batches)
        far, near = ((student(unseen) - wanted).square().mean() for student in (every_fourth, chosen))
    assert near < far


def test_the_order_is_reproducible():
    teacher = unet(16)
    first, second = copy.deepcopy(teacher), copy.deepcopy(teacher)
    for network in (first, second):
        sort_channels(network, unet(4), images(2, 2, 16, 16, 16), positions=100)
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    assert any(not torch.equal(weight, teacher.state_dict()[name]) for name, weight in first.state_dict().items())


def test_widths_need_not_divide_each_other():
    teacher = unet(8)
    student = unet(3)
    assert sort_channels(teacher, student, images(2, 2, 16, 16, 16)) > 5
    selected_weights(teacher, student)


def test_a_student_as_wide_as_its_teacher_takes_all_channels():
    teacher = unet(4)
    before = copy.deepcopy(teacher.state_dict())
    assert sort_channels(teacher, unet(4), images(2, 2, 16, 16, 16)) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_features_do_no_harm(value):
    teacher = unet(8)
    batches = [torch.full((2, 2, 16, 16, 16), value)]
    with torch.no_grad():
        wanted = teacher(batches[0])
        sort_channels(teacher, unet(4), batches)
        torch.testing.assert_close(teacher(batches[0]), wanted, rtol=1e-3, atol=1e-3)


def test_a_network_that_cannot_be_traced_is_refused():
    class Untraceable(nn.Sequential):
        def forward(self, read):
            return super().forward(read if read.mean() > 0 else -read)

    teacher = Untraceable(*chain(8))
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(ValueError, match="Untraceable cannot be traced: "):
        sort_channels(teacher, chain(4), images(2, 2, 9, 8))
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
