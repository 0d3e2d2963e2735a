import math

import pytest
import torch
from torch import nn

from nnunet_kd.networks.dra_unet import DPRM, DRAUNet, ResSimAM, simam
from nnunet_kd.networks.stages import decoder_stages, encoder_stages

BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}


def literal_simam(features, regularisation=1e-4):
    """Compute SimAM voxel by voxel: e is the inverse of the minimal energy (Yang et al., eq. 5), y = x sigmoid(e)."""
    result = torch.empty_like(features)
    for image in range(features.shape[0]):
        for channel in range(features.shape[1]):
            values = [float(value) for value in features[image, channel].flatten()]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            weighted = []
            for value in values:
                energy = (value - mean) ** 2 / (4 * (variance + regularisation)) + 0.5
                weighted.append(value / (1 + math.exp(-energy)))
            result[image, channel] = torch.tensor(weighted, dtype=features.dtype).view(features.shape[2:])
    return result


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 2, 3, 4, 5), (1, 1, 1, 2)])
def test_simam_is_the_formula(shape):
    features = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(simam(features), literal_simam(features))
    assert simam(features[..., :1, :1]).isfinite().all()  # a single sample has no variance


def test_simam_in_half_precision_does_not_overflow():
    features = 300 * torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = simam(features.half())
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.float(), simam(features.half().float()), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_dprm_is_equations_8_and_9(dim):
    torch.manual_seed(0)
    module = DPRM(3, 5, CONVOLUTION[dim], [7] * dim, BATCH_NORM[dim], {}).eval()
    x = torch.randn(2, 3, *[9] * dim)
    depthwise, pointwise = module.depthwise.weight, module.pointwise.weight
    scale = 1 / math.sqrt(1 + module.norm1.eps)  # batch normalisation in evaluation mode, statistics 0 and 1
    convolve = nn.functional.conv2d if dim == 2 else nn.functional.conv3d
    f1 = x + torch.stack(
        [convolve((x[:, c : c + 1] * scale).relu(), depthwise[c : c + 1], padding=3)[:, 0] for c in range(3)], 1
    )
    f2 = torch.einsum("oc,bc...->bo...", pointwise.flatten(1), (f1 * scale).relu())
    torch.testing.assert_close(module(x), f2, rtol=1e-4, atol=1e-5)
    assert module.depthwise.bias is None and module.pointwise.bias is None


def test_res_simam_is_equations_10_to_12_and_adds_no_parameter():
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d, {})
    module = ResSimAM(3, 4, nn.Conv2d, [3, 3], *norm).eval()
    x = torch.randn(2, 3, 8, 9)
    g1 = module.first(x)
    torch.testing.assert_close(module(x), g1 + simam(module.second(g1)))
    plain = ResSimAM(3, 4, nn.Conv2d, [3, 3], *norm, attention=False).eval()
    plain.load_state_dict(module.state_dict())  # strict: the same parameters
    torch.testing.assert_close(plain(x), module.second(g1))


NETWORKS = {
    "2-D": ({"conv_op": nn.Conv2d, "n_stages": 4}, (40, 24)),
    "3-D": ({"conv_op": nn.Conv3d, "n_stages": 3}, (12, 20, 28)),
    "anisotropic": (
        {
            "conv_op": nn.Conv3d,
            "n_stages": 3,
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        },
        (6, 20, 12),
    ),
    "odd": (
        {"conv_op": nn.Conv3d, "n_stages": 3, "strides": [[1, 1, 1], [1, 2, 2], [3, 1, 1]]},
        (9, 10, 6),
    ),
    "two stages": ({"conv_op": nn.Conv2d, "n_stages": 2, "norm_op": nn.InstanceNorm2d}, (10, 14)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_with_and_without_deep_supervision(name):
    arguments, size = NETWORKS[name]
    network = DRAUNet(2, 3, features_per_stage=4, deep_supervision=True, **arguments)
    network.apply(network.initialize)
    images = torch.randn(2, 2, *size)
    outputs = network(images)
    strides = encoder_stages(network).strides
    assert [tuple(o.shape) for o in outputs] == [
        (2, 3, *[length // step for length, step in zip(size, stride, strict=True)]) for stride in strides[:-1]
    ]
    network.decoder.deep_supervision = False
    assert torch.is_tensor(network.eval()(images)) and network(images).shape == (2, 3, *size)
    network.train()(images).square().mean().backward()
    used = [p for n, p in network.named_parameters() if "seg_layers" not in n]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in used)
    assert len(decoder_stages(network)) == len(strides) - 1


def test_paper_size_and_the_rows_of_table_2():
    with torch.device("meta"):
        sizes = {
            (dprm, attention): sum(p.numel() for p in DRAUNet(3, 2, dprm=dprm, attention=attention).parameters())
            for dprm in (True, False)
            for attention in (True, False)
        }
    assert encoder_stages(DRAUNet(3, 2, features_per_stage=2)).widths == (2, 4, 8, 16, 32)
    assert sizes[True, True] == sizes[True, False] and sizes[False, False] == sizes[False, True]
    coarser_heads = sum(2 * width + 2 for width in (512, 256, 128))  # of deep supervision
    assert sizes[False, False] - coarser_heads == 31_037_698  # the U-Net of Ronneberger et al. with normalisation


def test_dprm_does_not_convolve_an_axis_that_the_plans_do_not():
    network = DRAUNet(1, 2, 2, 4, nn.Conv3d, [[1, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2]])
    assert network.encoder.stages[0][1].depthwise.kernel_size == (1, 7, 7)
    assert network.encoder.stages[1][1].depthwise.kernel_size == (7, 7, 7)


def test_errors():
    with pytest.raises(ValueError, match="3 stages need as many features, got 2"):
        DRAUNet(1, 2, 3, [4, 8])
    with pytest.raises(ValueError, match="kernel sizes must be odd"):
        DRAUNet(1, 2, dprm_kernel_size=4)
