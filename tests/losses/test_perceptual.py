import re

import pytest
import torch
import torchvision
from torch import nn

from nnunet_kd.losses.perceptual import PerceptualLoss
from nnunet_kd.networks.pretrained import VGG16_ENDS, vgg16_layers


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss(vgg16_layers("random"))


def embeddings(channels=16, size=(8, 12), dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size, dtype=dtype) for _ in range(2)]


def test_layers_are_the_four_of_the_name():
    """By torchvision's own numbering: the ReLU after the 2nd, 4th, 7th and 10th convolution."""
    features = torchvision.models.vgg16().features
    convolutions = [number for number, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    assert tuple(convolutions[i - 1] + 1 for i in (2, 4, 7, 10)) == VGG16_ENDS
    assert all(isinstance(features[number], nn.ReLU) for number in VGG16_ENDS)


def test_against_the_formula(loss):
    student, teacher = embeddings(channels=8)

    def images(x):
        return torch.stack([x[:, :3].mean(1), x[:, 3:6].mean(1), x[:, 6:].mean(1)], 1)

    expected = 0.0
    with torch.no_grad():
        for sample in range(2):
            a, b = images(student)[sample : sample + 1], images(teacher)[sample : sample + 1]
            for number, layer in enumerate(loss.vgg):
                a, b = layer(a), layer(b)
                if number in (3, 8, 15, 22):
                    channels, height, width = a.shape[1:]
                    expected += float((a - b).square().sum()) / (channels * height * width) / 2
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_zero_where_equal_and_blind_to_permutations_within_a_third(loss):
    student, teacher = embeddings(channels=12)
    assert float(loss(student, student.clone())) == 0
    order = torch.tensor([3, 1, 0, 2, 4, 5, 7, 6, 11, 10, 9, 8])
    torch.testing.assert_close(loss(student[:, order], teacher), loss(student, teacher))


def test_gradient_reaches_the_student_alone(loss):
    student, teacher = (x.requires_grad_() for x in embeddings())
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_gradcheck():
    vgg = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Softplus(), nn.Conv2d(2, 2, 3), nn.Softplus()).double()
    student, teacher = embeddings(4, (8, 8), torch.float64)
    loss = PerceptualLoss(vgg, ends=(1, 3))
    assert torch.autograd.gradcheck(loss, (student[:1].requires_grad_(), teacher[:1]))


def test_half_precision_is_computed_in_float32(loss):
    student, teacher = embeddings()
    whole = float(loss(student.bfloat16(), teacher.bfloat16()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = float(loss(student.bfloat16(), teacher.bfloat16()))
    assert mixed == whole


def test_double_precision_is_computed_in_float64(loss):
    student, teacher = embeddings(dtype=torch.float64)
    value = loss(student, teacher)
    assert value.dtype == torch.float64 and next(loss.parameters()).dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(student.float(), teacher.float())), rel=1e-5)


def test_errors(loss):
    student, teacher = embeddings()
    with pytest.raises(ValueError, match=r"the student's embedding is \(2, 16, 8, 12\), the teacher's \(2, 8, 8, 12\)"):
        loss(student, teacher[:, :8])
    with pytest.raises(ValueError, match=r"H, W >= 8, got \(2, 16, 4, 12\)"):
        loss(student[:, :, :4], teacher[:, :, :4])


def test_weights_of_a_file_and_none_at_all(tmp_path, monkeypatch):
    torch.manual_seed(5)
    whole = torchvision.models.vgg.VGG(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]), 2)
    torch.save(whole.state_dict(), tmp_path / "vgg.pth")
    layers = vgg16_layers(tmp_path / "vgg.pth")
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(layers(image), whole.features[:23](image))
    assert torch.equal(vgg16_layers("random")(image), vgg16_layers("random")(image))

    with pytest.raises(FileNotFoundError, match="there are no weights of VGG-16 in"):
        vgg16_layers(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="is damaged, or holds more than weights"):
        vgg16_layers(tmp_path / "text.pth")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's weights of VGG-16"):
        vgg16_layers(tmp_path / "other.pth")

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.VGG16_Weights.IMAGENET1K_V1.__class__, "get_state_dict", no_network)
    url = re.escape("https://download.pytorch.org/models/vgg16-397923af.pth")
    with pytest.raises(FileNotFoundError, match=f"VGG-16 cannot be downloaded here: fetch {url} elsewhere"):
        vgg16_layers()
