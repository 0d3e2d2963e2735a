import copy

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_kd.pruning.reconstruction import reconstruct
from nnunet_kd.pruning.selection import selected_weights
from tests.pruning.networks import EVERYWHERE, images, thinner, unet


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": (1, 2), "dilation": (1, 2)}, {"kernel_size": (1, 3), "padding": (0, 1)}]
)
def test_a_convolution_is_the_least_squares_solution(options, bias):
    options = {"kernel_size": 3, "padding": 1, "bias": bias, **options}
    teacher = nn.Sequential(nn.Conv2d(4, 6, **options), nn.Tanh(), nn.Conv2d(6, 5, **options))
    student = thinner(teacher, nn.Sequential(nn.Conv2d(4, 3, **options), nn.Tanh(), nn.Conv2d(3, 5, **options)))
    batches = images(2, 4, 9, 8)
    explained = reconstruct(teacher, student, batches, EVERYWHERE, ridge=1e-12)
    torch.testing.assert_close(student[0].weight, teacher[0].weight[::2])
    assert list(explained) == ["0", "2"]
    assert explained["0"] == pytest.approx(1)
    assert 0 < explained["2"] < 1

    with torch.no_grad():
        read, wanted = student[:2](torch.cat(batches)), teacher(torch.cat(batches))
        windows = nn.functional.unfold(
            read, teacher[2].kernel_size, teacher[2].dilation, teacher[2].padding, teacher[2].stride
        )
    rows = windows.transpose(1, 2).flatten(0, 1).double().numpy()
    given = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    rows = np.concatenate((rows, np.ones_like(rows[:, :1])), 1)
    solution, *_ = np.linalg.lstsq(rows, given, rcond=None)
    expected = torch.from_numpy(solution[:-1].T.reshape(student[2].weight.shape)).float()
    torch.testing.assert_close(student[2].weight, expected, rtol=1e-3, atol=1e-4)
    if bias:
        torch.testing.assert_close(student[2].bias, torch.from_numpy(solution[-1]).float(), rtol=1e-3, atol=1e-4)
    residual = ((rows @ solution - given) ** 2).sum() / ((given - given.mean(0)) ** 2).sum()
    assert explained["2"] == pytest.approx(1 - residual, abs=1e-3)


@pytest.mark.parametrize("kernel", [2, (1, 2, 2)])
def test_a_transposed_convolution_is_recovered(kernel):
    teacher = nn.ConvTranspose3d(3, 4, kernel, stride=kernel)
    student = nn.ConvTranspose3d(3, 2, kernel, stride=kernel)
    student.load_state_dict(selected_weights(teacher, student))
    explained = reconstruct(teacher, student, images(1, 3, 4, 5, 6), EVERYWHERE, ridge=1e-12)
    torch.testing.assert_close(student.weight, teacher.weight[:, ::2])
    torch.testing.assert_close(student.bias, teacher.bias[::2])
    assert explained == {"": pytest.approx(1)}


def test_a_teacher_with_duplicate_channels_is_recovered():
    """Selected weights take one channel of each pair; here the next layer weighs the two differently."""
    teacher, student = unet(8), unet(4)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            own = dict(student.named_parameters())[name].shape
            gives = 1 if name.startswith("decoder.transpconvs") and name.endswith("weight") else 0
            if weight.shape[gives] != own[gives]:  # every output channel is duplicated
                weight.copy_(
                    weight.index_select(gives, torch.arange(0, weight.shape[gives], 2)).repeat_interleave(2, gives)
                )
    batches = images(2, 2, 16, 16, 16)
    thinner(teacher, student)
    with torch.no_grad():
        expected = teacher(batches[0])
        assert (student(batches[0]) - expected).abs().max() > 0.1
        explained = reconstruct(teacher, student, batches, EVERYWHERE, ridge=1e-9)
        torch.testing.assert_close(student(batches[0]), expected, rtol=1e-2, atol=1e-2)
    assert min(explained.values()) > 0.999


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_student_is_nearer_to_its_teacher(kind, dim):
    teacher, student = unet(16, dim, kind), thinner(unet(16, dim, kind), unet(4, dim, kind))
    *batches, unseen = images(2, 2, *[16] * dim, count=5)
    with torch.no_grad():
        wanted = teacher(unseen)
        before = (student(unseen) - wanted).square().mean()
        explained = reconstruct(teacher, student, batches)
        after = (student(unseen) - wanted).square().mean()
    assert after < before / 2
    assert all(0 < share <= 1 + 1e-9 for share in explained.values())


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_batch_normalisation_takes_the_intercept_of_a_layer_that_has_none(layer):
    """The student's input of the normalisation has the same means over all positions as the teacher's."""

    def network(width):
        first = nn.Conv2d(2, width, 3, padding=1), nn.Tanh()
        second = layer(width, width, 2, stride=2, bias=False), nn.BatchNorm2d(width)
        return nn.Sequential(*first, *second, nn.ReLU(), nn.Conv2d(width, 3, 1)).eval()

    torch.manual_seed(0)
    teacher, student = network(8), network(3)
    teacher[3].running_mean.normal_()
    teacher[3].running_var.uniform_(0.5, 2)
    thinner(teacher, student)
    batches = images(4, 2, 12, 12)
    with torch.no_grad():
        reconstruct(teacher, student, batches, EVERYWHERE, ridge=1e-9)
        taught, learnt = (torch.cat([network[:4](batch) for batch in batches]) for network in (teacher, student))
    means = taught.mean((0, 2, 3))[[0, 2, 5]]
    torch.testing.assert_close(learnt.mean((0, 2, 3)), means, rtol=1e-4, atol=1e-5)
    assert (student[3].running_mean - teacher[3].running_mean[[0, 2, 5]]).abs().min() > 1e-3


def test_the_fit_is_reproducible_and_keeps_other_weights():
    teacher = unet(8, deep_supervision=True)
    first = thinner(teacher, unet(4, deep_supervision=True)).train()
    second = copy.deepcopy(first)
    before = copy.deepcopy(first.state_dict())
    batches = images(2, 2, 16, 16, 16)
    teachers_weights = copy.deepcopy(teacher.state_dict())
    explained = reconstruct(teacher, first, batches, positions=100)
    reconstruct(teacher, second, batches, positions=100)
    assert first.training
    fitted = {f"{name}.{part}" for name in explained for part in ("weight", "bias")}
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        shared = any(part in name for part in ("all_modules", "decoder.encoder"))  # other names of the same weights
        assert shared or torch.equal(weight, before[name]) == (name not in fitted), name
    assert all(torch.equal(weight, teachers_weights[name]) for name, weight in teacher.state_dict().items())
    assert {"decoder.seg_layers.0", "decoder.transpconvs.1"} <= explained.keys()


def test_a_head_the_teacher_does_not_run_is_left_alone():
    teacher, student = unet(8), thinner(unet(8), unet(4, deep_supervision=True))
    before = student.decoder.seg_layers[0].weight.clone()
    explained = reconstruct(teacher, student, images(2, 2, 16, 16, 16))
    assert "decoder.seg_layers.0" not in explained
    assert torch.equal(student.decoder.seg_layers[0].weight, before)


def test_grouped_shared_and_overlapping_layers_are_left_alone():
    class Odd(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.grouped = nn.Conv2d(4, width, 3, padding=1, groups=2)
            self.twice = nn.Conv2d(width, width, 3, padding=1)
            self.overlapping = nn.ConvTranspose2d(width, 2, 3, stride=2)

        def forward(self, read):
            return self.overlapping(self.twice(self.twice(self.grouped(read))))

    teacher, student = Odd(4), thinner(Odd(4), Odd(4))
    assert reconstruct(teacher, student, images(1, 4, 8, 8)) == {}


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_features_do_no_harm(value):
    teacher = unet(8)
    student = thinner(teacher, unet(4))
    reconstruct(teacher, student, [torch.full((2, 2, 16, 16, 16), value)])
    assert all(torch.isfinite(weight).all() for weight in student.state_dict().values())
