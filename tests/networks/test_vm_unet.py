import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import TERMS
from nnunet_kd.distillation.student import StudentWithAdapters
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.evaluation.cost import network_cost
from nnunet_kd.networks.stages import decoder_stages, encoder_stages
from nnunet_kd.networks.vm_unet import PatchExpanding, PatchMerging, VMUNet
from nnunet_kd.networks.vss_block import SS2D, VSSBlock, fold_directions, unfold_directions

SMALL = {"n_stages": 3, "features_per_stage": 8, "depths": 1, "depths_decoder": 1, "state_size": 4}


def small(classes=3, **options):
    torch.manual_seed(0)
    network = VMUNet(2, classes, **{**SMALL, **options})
    network.apply(network.initialize)
    return network


def published_operations(network, images):
    """Count multiply-adds of convolutions and linear layers, and four operations per normalised number."""
    operations = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            operations.append(output.numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            operations.append(output.numel() * module.in_features)
        elif isinstance(module, nn.LayerNorm):
            operations.append(4 * output.numel())

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    network(images)
    for hook in hooks:
        hook.remove()
    return sum(operations)


def scan_operations(network, size):
    """Count multiply-adds of the projections of the scan, and the scans as in VMamba, (9 N + 1) L D."""
    projections = scans = 0
    scale = {width: math.prod(stride) for width, stride in zip(*_levels(network), strict=True)}
    for block in network.modules():
        if isinstance(block, VSSBlock):
            tokens = math.prod(size) // scale[block.norm.normalized_shape[0]]
            mixer = block.mixer
            projections += tokens * (mixer.projection.numel() + mixer.step_projection.numel())
            scans += tokens * (9 * mixer.A_log.numel() + mixer.D.numel())
    return projections, scans


def _levels(network):
    stages = encoder_stages(network)
    return stages.widths, stages.strides


def test_the_papers_parameters_and_operations():
    with torch.device("meta"):
        network, images = VMUNet(3, 1), torch.empty(1, 3, 256, 256)
    supervision = sum(p.numel() for p in network.decoder.seg_layers[:-1].parameters())
    parameters = sum(p.numel() for p in network.parameters())
    assert supervision == 675 and parameters - supervision == 27_427_561  # 27.42 M in table 4
    assert abs(published_operations(network, images) / 4.11e9 - 1) < 0.001
    projections, scans = scan_operations(network, (256, 256))
    assert (round(projections / 1e9, 2), round(scans / 1e9, 2)) == (1.22, 2.96)
    assert encoder_stages(network).widths == (96, 192, 384, 768)
    bottleneck, *stages = decoder_stages(network)
    assert [len(bottleneck), *(len(stage.blocks) for stage in stages)] == [2, 2, 2, 1]


def test_counting_operations_takes_no_memory():
    with torch.device("meta"):
        network = VMUNet(2, 3, **SMALL)
    cost = network_cost(network, 2, [64, 32])
    assert cost.parameters == sum(p.numel() for p in small().parameters())
    assert cost.flops > 0 and cost.activation_bytes > 0


def test_directions_visit_every_pixel_and_come_back():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    sequences = unfold_directions(x)
    image = x[1, 2]
    orders = [image.flatten(), image.T.flatten(), image.flatten().flip(0), image.T.flatten().flip(0)]
    assert torch.equal(sequences[1, :, 2], torch.stack(orders))
    assert torch.equal(fold_directions(sequences, 4, 5), 4 * x)


def test_a_block_is_its_equations():
    torch.manual_seed(0)
    block = VSSBlock(6, 4, 0.5).double().eval()
    mixer, x = block.mixer, torch.randn(1, 3, 5, 6, dtype=torch.float64)
    inside, gate = (block.norm(x) @ mixer.expand.weight.T).chunk(2, -1)
    inside = F.silu(mixer.depthwise(inside.permute(0, 3, 1, 2)))[0]  # (12, 3, 5)
    pixels = [(i, j) for i in range(3) for j in range(5)]
    columns = [(i, j) for j in range(5) for i in range(3)]
    total = torch.zeros(3, 5, 12, dtype=torch.float64)
    for direction, order in enumerate([pixels, columns, pixels[::-1], columns[::-1]]):
        own = slice(12 * direction, 12 * direction + 12)
        state = torch.zeros(12, 4, dtype=torch.float64)
        for i, j in order:
            u = inside[:, i, j]
            rank, inputs, outputs = (mixer.projection[direction] @ u).split([1, 4, 4])
            delta = F.softplus(mixer.step_projection[direction] @ rank + mixer.step_bias[own])
            decay = torch.exp(delta[:, None] * -mixer.A_log[own].exp())
            state = decay * state + (delta * u)[:, None] * inputs
            total[i, j] += state @ outputs + mixer.D[own] * u
    expected = x[0] + (mixer.norm(total) * F.silu(gate[0])) @ mixer.reduce.weight.T
    torch.testing.assert_close(block(x)[0], expected)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (4, 3)])
def test_merging_and_expanding_keep_neighbours_together(stride):
    rows, columns = stride
    merging, expanding = PatchMerging(2, 2 * rows * columns, stride), PatchExpanding(2 * rows * columns, 2, stride)
    for module, layer in ((merging, merging.reduce), (expanding, expanding.expand)):
        nn.init.eye_(layer.weight)
        module.norm = nn.Identity()
    x = torch.randn(1, 3 * rows, 5 * columns, 2)
    merged = merging(x)
    assert merged.shape == (1, 3, 5, 2 * rows * columns)
    assert torch.equal(merged[0, 1, 2], x[0, rows : 2 * rows, 2 * columns : 3 * columns].flatten())
    assert torch.equal(expanding(merged), x)


ARGUMENTS = {
    "as default": ({}, (32, 48)),
    "strides": ({"strides": [[1, 1], [2, 4], [1, 2], [3, 1]]}, (12, 24)),
    "widths and depths": (
        {"features_per_stage": [6, 10, 9], "depths": [1, 2, 1], "depths_decoder": [2, 1, 1]},
        (32, 16),
    ),
    "two stages, narrow": ({"n_stages": 2, "features_per_stage": [2, 4]}, (16, 8)),
    "many channels": ({"channels": 5, "classes": 7}, (16, 32)),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_forward_with_and_without_deep_supervision(name):
    given, size = ARGUMENTS[name]
    options = dict(given)
    channels, classes = options.pop("channels", 1), options.pop("classes", 2)
    network = VMUNet(channels, classes, **{**SMALL, **options}, deep_supervision=True)
    network.apply(network.initialize)
    strides = [[1, 1], *network.encoder.strides]
    scales = (1 / np.cumprod(np.vstack(strides), axis=0))[:-1]  # as nnU-Net computes the scales from the plans
    images = torch.randn(2, channels, *size)
    outputs = network(images)
    assert [tuple(o.shape) for o in outputs] == [
        (2, classes, *(round(length * s) for length, s in zip(size, scale, strict=True))) for scale in scales
    ]
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    finest = network.eval()(images)[0]
    network.decoder.deep_supervision = False
    assert torch.equal(network(images), finest)


def test_a_plan_builds_it_and_weights_load_with_and_without_deep_supervision():
    arguments = {**SMALL, "conv_op": "torch.nn.modules.conv.Conv2d", "strides": [[1, 1], [4, 4], [2, 2], [2, 2]]}
    name = "nnunet_kd.networks.vm_unet.VMUNet"
    made = [
        get_network_from_plans(name, arguments, ["conv_op"], 2, 3, deep_supervision=deep).eval()
        for deep in (True, False)
    ]
    made[1].load_state_dict(made[0].state_dict())
    images = torch.randn(1, 2, 16, 32)
    assert torch.equal(made[0](images)[0], made[1](images))


def test_logits_depend_on_the_features_alone():
    network = small().eval()
    images = torch.randn(2, 2, 32, 16)
    features = network.encoder(images)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 8, 4), (16, 4, 2), (32, 2, 1)]
    assert encoder_stages(network).strides == ((4, 4), (8, 8), (16, 16))
    assert torch.equal(network.decoder([feature.contiguous() for feature in features]), network(images))


def test_dual_self_distillation_reads_its_stages():
    network = small(deep_supervision=True, drop_path=0.0)  # drop path could skip a block for all samples
    term = TERMS["dual_self"].build(10, "here")
    adapters = Distiller([term], LabelCodes(LabelManager({"background": 0, "a": 1}, None))).adapters(network)
    student = StudentWithAdapters(network, adapters, decoder=True)
    logits, encoder, decoder = student(torch.randn(2, 2, 32, 32))
    assert len(logits) == 3
    shapes = [tuple(stage.shape[1:]) for stage in decoder]
    assert shapes == [tuple(stage.shape[1:]) for stage in encoder] == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert [len(part) for part in adapters["dual_self"].children()] == [3, 2, 2, 2, 0]
    term.loss(encoder, decoder, adapters["dual_self"]).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    taught = (network.encoder.named_parameters(prefix="encoder"), network.decoder.bottleneck.named_parameters())
    assert all(name in reached for name, _ in taught[0])
    assert all(f"decoder.bottleneck.{name}" in reached for name, _ in taught[1])


def test_initial_values_of_the_scan_survive_nnunets_initialisation():
    network = small()
    mixers = [module for module in network.modules() if isinstance(module, SS2D)]
    assert len(mixers) == 6
    for mixer in mixers:
        torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 5).expand_as(mixer.A_log))
        assert (mixer.D == 1).all()
        steps = F.softplus(mixer.step_bias)
        assert 0.99e-3 <= steps.min() < 5e-3 and 0.02 < steps.max() <= 0.101
    linear = torch.cat([m.weight.detach().flatten() for m in network.modules() if isinstance(m, nn.Linear)])
    assert abs(float(linear.std()) - 0.02) < 1e-3


def test_drop_path_follows_the_seed_and_is_off_in_evaluation():
    with torch.device("meta"):
        paper = VMUNet(3, 1)
    rates = [block.drop_path for block in paper.modules() if isinstance(block, VSSBlock)]
    assert rates[0] == 0 and rates[7] == rates[8] == 0.2 and rates[-1] == 0  # encoder up, decoder down
    assert rates[:8] == sorted(rates[:8]) and rates[8:] == sorted(rates[8:], reverse=True)

    network, images = small(drop_path=0.5), torch.randn(4, 2, 16, 16)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    network.eval()
    assert torch.equal(network(images), network(images))

    block, x = VSSBlock(4, 2, 0.5), torch.randn(64, 1, 2, 4)
    whole = block.eval()(x) - x
    torch.manual_seed(0)
    part = block.train()(x) - x
    kept = part.flatten(1).abs().sum(1) > 0
    assert 16 < int(kept.sum()) < 48
    torch.testing.assert_close(part[kept], 2 * whole[kept])  # the mean over samples is kept


def test_autocast_stays_close_and_the_scan_is_float32():
    network, images = small().eval(), torch.randn(1, 2, 16, 16)
    mixer = network.encoder.stages[0][1].mixer
    with torch.no_grad():
        precise = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(images)
            assert mixer.scan(torch.randn(1, 16, 4, 4).bfloat16()).dtype == torch.float32
    assert (rough.float() - precise).norm() < 0.05 * precise.norm()


def test_in_float64():
    network, images = small().eval(), torch.randn(1, 2, 16, 16)
    precise = copy.deepcopy(network).double()(images.double())
    assert precise.dtype == torch.float64
    torch.testing.assert_close(network(images).double(), precise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_op": nn.Conv3d}, "VM-UNet is 2-D: conv_op must be torch.nn.Conv2d, got Conv3d"),
        ({"features_per_stage": [4, 8]}, "3 stages need 3 features, got 2"),
        ({"strides": [1, 4, 2]}, "3 stages need 4 strides, got 3"),
        ({"depths": [1, 1]}, "3 stages need 3 depths, got 2"),
        ({"depths_decoder": [1] * 4}, "3 stages need 3 decoder depths, got 4"),
        ({"strides": [4, 2, 2, 2]}, r"the first stride must be 1, the full resolution, got \[4, 4\]"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        VMUNet(2, 3, **{**SMALL, **options})


def test_sizes_that_are_not_divisible_by_the_strides():
    with pytest.raises(ValueError, match=r"expected image sizes divisible by \(16, 16\), got \(32, 40\)"):
        small()(torch.zeros(1, 2, 32, 40))
