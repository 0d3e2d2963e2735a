import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from nnunet_kd.pruning import prune
from nnunet_kd.pruning.ordering import sort_channels
from nnunet_kd.pruning.reconstruction import reconstruct
from tests.pruning.networks import images, thinner, unet


def equal(network, other):
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in network.state_dict().items())


@pytest.mark.parametrize("heads", [None, "classes", "regions"])
def test_prune_orders_selects_and_fits(heads):
    teacher, batches = unet(8, 2), images(2, 2, 16, 16)
    by_hand = copy.deepcopy(teacher)
    reordered = sort_channels(by_hand, unet(4, 2), batches)
    expected = thinner(by_hand, unet(4, 2))
    explained = reconstruct(by_hand, expected, batches, heads=heads)
    student = unet(4, 2)
    pruned = prune(teacher, student, batches, heads=heads)
    assert equal(teacher, by_hand) and equal(student, expected)
    assert pruned.explained == explained and pruned.reordered == reordered > 5 and pruned.refusal is None


def test_without_reordering_every_other_channel_is_fitted():
    teacher, student, batches = unet(8, 2), unet(4, 2), images(2, 2, 16, 16)
    before = copy.deepcopy(teacher)
    expected = thinner(teacher, unet(4, 2))
    reconstruct(teacher, expected, batches)
    pruned = prune(teacher, student, batches, reorder=False)
    assert equal(teacher, before) and equal(student, expected)
    assert pruned.reordered == 0 and pruned.refusal is None


def test_a_single_batch_can_be_a_tensor():
    teacher, (batch,) = unet(8, 2), images(2, 2, 16, 16, count=1)
    first, second = unet(4, 2), unet(4, 2)
    prune(copy.deepcopy(teacher), first, batch)
    prune(teacher, second, [batch])
    assert equal(first, second)


def test_a_teacher_that_cannot_be_traced_keeps_its_order():
    class Untraceable(nn.Sequential):
        def forward(self, read):
            return super().forward(read if read.mean() > -100 else -read)

    def network(width):
        torch.manual_seed(0)
        return Untraceable(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    teacher, student = network(8), network(4)
    before, expected = copy.deepcopy(teacher), network(4)
    prune(teacher, expected, images(2, 2, 9, 8), reorder=False)
    pruned = prune(teacher, student, images(2, 2, 9, 8))
    assert pruned.refusal.startswith("Untraceable cannot be traced: ") and pruned.reordered == 0
    assert equal(teacher, before) and equal(student, expected)
    assert list(pruned.explained) == ["0", "2"]


def test_networks_that_do_not_fit_are_refused_before_the_teacher_changes():
    teacher, student = unet(8, 2), unet(16, 2)
    before, untouched = copy.deepcopy(teacher), copy.deepcopy(student)
    with pytest.raises(ValueError, match="cannot be taken from the teacher's"):
        prune(teacher, student, images(2, 2, 16, 16))
    assert equal(teacher, before) and equal(student, untouched)


@pytest.mark.parametrize("training", [True, False])
def test_it_runs_in_evaluation_mode_and_restores_the_mode(training):
    kind = {"norm_op": nn.BatchNorm2d}
    teacher, student = unet(8, 2, **kind).train(training), unet(4, 2, **kind).train(not training)
    expected = unet(4, 2, **kind)
    prune(copy.deepcopy(teacher).eval(), expected, images(2, 2, 16, 16))
    prune(teacher, student, images(2, 2, 16, 16))
    assert teacher.training == training and student.training != training
    assert equal(student, expected)


@pytest.mark.parametrize("reorder", [True, False])
def test_progress_is_the_share_of_all_steps(reorder):
    shares = []
    prune(unet(8, 2), unet(4, 2), images(2, 2, 16, 16), reorder=reorder, progress=shares.append)
    layers = sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in unet(4, 2).modules())
    steps = layers + 3 * (2 if reorder else 1)
    assert shares == [step / steps for step in range(1, len(shares) + 1)]
    assert shares[-1] > 0.9


ALONE = """
    import sys

    sys.modules.update(dict.fromkeys(("nnunetv2", "dynamic_network_architectures", "batchgenerators"), None))

    import torch
    from torch import nn

    from nnunet_kd.pruning import prune


    class UNet(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3, padding=1)
            self.norm = nn.InstanceNorm2d(width, affine=True)
            self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
            self.head = nn.Conv2d(2 * width, 2, 1)

        def forward(self, images):
            fine = torch.relu(self.norm(self.first(images)))
            coarse = torch.relu(self.down(fine))
            return self.head(torch.cat((self.up(coarse), fine), 1))


    torch.manual_seed(0)
    teacher, student = UNet(8), UNet(4)
    images, unseen = torch.randn(2, 4, 1, 16, 16)
    with torch.no_grad():
        wanted = teacher(unseen)
        before = (student(unseen) - wanted).square().mean()
        pruned = prune(teacher, student, images, heads="classes")
        torch.testing.assert_close(teacher(unseen), wanted, rtol=1e-4, atol=1e-4)
        after = (student(unseen) - wanted).square().mean()
    assert pruned.reordered == 3 and pruned.refusal is None, pruned
    assert list(pruned.explained) == ["first", "down", "up", "head"], pruned
    assert after < before / 4, (before, after)
    rooms = {name.split(".")[1] for name in sys.modules if name.startswith("nnunet_kd.")}
    assert rooms == {"pruning"}, rooms
"""


@pytest.mark.slow
def test_pruning_needs_nothing_but_torch():
    subprocess.run([sys.executable, "-c", textwrap.dedent(ALONE)], check=True, timeout=120)
