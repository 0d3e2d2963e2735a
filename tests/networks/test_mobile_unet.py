"""Mobile U-Net: its blocks, its size, its stages, and its form in ONNX."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_kd.deploy.onnx_network import check_network, export_network
from nnunet_kd.evaluation.cost import network_cost
from nnunet_kd.networks.mobile_unet import InvertedResidual, MobileUNet
from nnunet_kd.networks.stages import decoder_stages, encoder_stages
from nnunet_kd.runtime.engines import open_engine

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AMOS = {  # nnU-Net's plans of AMOS at a quarter of the width
    "n_stages": 6,
    "features_per_stage": [8, 16, 32, 64, 80, 80],
    "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 5],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
}


@pytest.mark.parametrize("dim", [2, 3])
def test_an_inverted_residual_is_its_formula(dim):
    torch.manual_seed(0)
    block = InvertedResidual(3, 3, 6, CONVOLUTION[dim], [3] * dim, [1] * dim, BATCH_NORM[dim], {}).eval()
    expand, _, _, depthwise, _, _, project, _ = block.layers
    scale = 1 / (1 + 1e-5) ** 0.5  # batch normalisation in evaluation mode, statistics 0 and 1
    x = torch.randn(2, 3, *(5, 7, 4)[:dim])
    convolve = nn.functional.conv2d if dim == 2 else nn.functional.conv3d
    wide = (torch.einsum("oc,bc...->bo...", expand.weight.flatten(1), x) * scale).relu()
    filtered = [convolve(wide[:, c : c + 1], depthwise.weight[c : c + 1], padding=1)[:, 0] for c in range(6)]
    narrow = torch.einsum("oc,bc...->bo...", project.weight.flatten(1), (torch.stack(filtered, 1) * scale).relu())
    torch.testing.assert_close(block(x), x + narrow * scale, rtol=1e-4, atol=1e-5)
    assert all(layer.bias is None for layer in (expand, depthwise, project))


def test_a_block_adds_its_input_only_if_it_keeps_the_shape():
    x = torch.randn(1, 4, 8, 8)
    for outputs, stride, size in ((4, 2, 4), (6, 1, 8)):
        block = InvertedResidual(4, outputs, 4, nn.Conv2d, [3, 3], [stride] * 2, nn.BatchNorm2d, {}).eval()
        assert block(x).shape == (1, outputs, size, size) and torch.equal(block(x), block.layers(x))
        assert len(block.layers) == 5  # without widening there is no first convolution


NETWORKS = {
    "2-D": ({"conv_op": nn.Conv2d, "n_stages": 4}, (40, 24)),
    "3-D": ({"conv_op": nn.Conv3d, "n_stages": 3, "norm_op": nn.InstanceNorm3d}, (12, 20, 28)),
    "anisotropic": (
        {"conv_op": nn.Conv3d, "n_stages": 3, "kernel_sizes": AMOS["kernel_sizes"][:3], "strides": AMOS["strides"][:3]},
        (6, 20, 12),
    ),
    "odd": ({"conv_op": nn.Conv3d, "n_stages": 3, "strides": [[1, 1, 1], [1, 2, 2], [3, 1, 1]]}, (9, 10, 6)),
    "two stages": ({"conv_op": nn.Conv2d, "n_stages": 2, "blocks_per_stage": [2, 1], "expansion": 1}, (10, 14)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_with_and_without_deep_supervision(name):
    arguments, size = NETWORKS[name]
    network = MobileUNet(2, 3, **{"features_per_stage": 4, **arguments}, deep_supervision=True)
    network.apply(network.initialize)
    images = torch.randn(2, 2, *size)
    outputs, stages = network(images), encoder_stages(network)
    grids = [tuple(side // step for side, step in zip(size, steps, strict=True)) for steps in stages.strides]
    assert [tuple(one.shape) for one in outputs] == [(2, 3, *grid) for grid in grids[:-1]]
    features = network.encoder(images)
    assert [tuple(one.shape) for one in features] == [
        (2, width, *grid) for width, grid in zip(stages.widths, grids, strict=True)
    ]
    network.decoder.deep_supervision = False
    assert torch.is_tensor(network.eval()(images)) and network(images).shape == (2, 3, *size)
    network.train()(images).square().mean().backward()
    used = [p for n, p in network.named_parameters() if "seg_layers" not in n]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in used)
    assert len(decoder_stages(network)) == len(grids) - 1


def test_its_size_at_the_shape_of_amos():
    """29 % of the parameters and 21 % of the FLOPs of a plain U-Net of the same widths (1.92 M, 55.4 G)."""
    with torch.device("meta"):
        network = MobileUNet(1, 16, **AMOS)
    cost = network_cost(network, 1, [64, 160, 160])
    assert cost.parameters == 556_768 and cost.flops / 1e9 == pytest.approx(11.85, abs=0.05)


def test_blocks_that_read_the_finest_grids_widen_less():
    network = MobileUNet(1, 2, 4, [4, 8, 16, 16], nn.Conv2d, expansion=4)
    widened = [
        [block.layers[0].out_channels for block in stage if isinstance(block, InvertedResidual)]
        for stage in network.encoder.stages
    ]
    assert widened == [[4], [4, 16], [16, 64], [64, 64]]
    assert [stage.layers[0].out_channels for stage in network.decoder.stages] == [64, 16, 8]


@pytest.mark.slow
def test_onnx_with_axes_of_any_size(tmp_path):
    torch.manual_seed(0)
    network, path = MobileUNet(1, 3, 3, 4, nn.Conv2d).eval(), tmp_path / "network.onnx"
    assert export_network(network, 1, [16, 24], [4, 4], path) == [4, 4]
    assert check_network(network, path, 1, [16, 24], [4, 4], "fp32") < 1e-5
    image = torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        expected = network(image).numpy()
    np.testing.assert_allclose(open_engine("openvino", path, None, threads=1)(image.numpy()), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_stages": 3, "features_per_stage": [4, 8]}, "3 stages need as many features, got 2"),
        ({"n_stages": 3, "blocks_per_stage": [1, 1]}, "3 stages need as many blocks, got 2"),
        ({"kernel_sizes": 2}, "kernel sizes must be odd"),
        ({"expansion": 0}, r"blocks_per_stage and expansion must be at least 1, got \[1, 2, 2, 2, 2, 2\] and 0"),
        ({"blocks_per_stage": 0}, r"must be at least 1, got \[1, 0, "),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileUNet(1, 2, **arguments)
