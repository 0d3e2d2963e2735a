import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd.pruning.selection import selected_weights


class Joined(nn.Module):
    """Two concatenated branches, like a skip connection."""

    def __init__(self, width, inputs=2, classes=3):
        super().__init__()
        self.down = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.deep = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, classes, 1)

    def forward(self, images):
        skip = self.norm(self.down(images))
        return self.out(torch.cat((self.up(self.deep(skip).relu()), skip), 1))


def test_every_other_channel_is_taken():
    teacher, student = Joined(8), Joined(4)
    weights = selected_weights(teacher, student)
    torch.testing.assert_close(weights["down.weight"], teacher.down.weight[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["down.bias"], teacher.down.bias[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["norm.weight"], teacher.norm.weight[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["deep.weight"], 2 * teacher.deep.weight[::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["up.weight"], 2 * teacher.up.weight[::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["out.weight"], 2 * teacher.out.weight[:, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["out.bias"], teacher.out.bias, rtol=0, atol=0)


def test_a_teacher_with_duplicate_channels_equals_the_student():
    """A layer reads the same channels as in the teacher, even of concatenated tensors, with the same sums."""
    torch.manual_seed(0)
    teacher, student = Joined(8), Joined(4)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            for axis in range(weight.dim()):
                if weight.shape[axis] != dict(student.named_parameters())[name].shape[axis]:
                    first = weight.index_select(axis, torch.arange(0, weight.shape[axis], 2))
                    weight.copy_(first.repeat_interleave(2, axis))
    student.load_state_dict(selected_weights(teacher, student))
    images = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(student(images), teacher(images))


def test_widths_need_not_divide_each_other():
    weights = selected_weights(Joined(7), Joined(3))
    assert {name: w.shape for name, w in weights.items()} == {n: w.shape for n, w in Joined(3).state_dict().items()}


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 1)), "other layers than the teacher: only the student has 0.bias"),
        (Joined(16), r"the student's down.weight \[16, 2, 3, 3\] cannot be taken from the teacher's \[8, 2, 3, 3\]"),
    ],
)
def test_networks_that_do_not_fit(student, message):
    with pytest.raises(ValueError, match=message):
        selected_weights(Joined(8), student)


def test_residual_encoders_whose_projections_differ():
    """A block has a projection only if its stage is wider than the previous one."""

    def network(widths):
        with torch.device("meta"):
            return ResidualEncoderUNet(1, 3, widths, nn.Conv2d, 3, [1, 2, 2], 1, 2, 1)

    with pytest.raises(ValueError, match="only the teacher has .*skip.*: stages of equal width have no projec"):
        selected_weights(network([32, 64, 128]), network([8, 8, 16]))
    assert selected_weights(network([32, 64, 128]), network([4, 8, 16]))


def test_weights_are_taken_from_a_teacher_on_a_gpu():
    """Fake tensors of a GPU refuse tensors of other devices as a GPU would."""
    with FakeTensorMode():
        with torch.device("cuda"):
            teacher = Joined(8)
        student = Joined(4)
        weights = selected_weights(teacher, student)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in student.state_dict().items()
    }
    assert {weight.device.type for weight in weights.values()} == {"cuda"}
