import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF
from nnunet_kd.networks.output_scales import ONE_OUTPUT_STRIDES
from tests.networks.small_brainseg_dmif import SMALL, random_images, small

ABLATIONS = [
    {"dmif": dmif, "prompt_generator": prompts, "upsampling_decoder": scales}
    for dmif in (True, False)
    for prompts in (True, False)
    for scales in (True, False)
]


@pytest.mark.parametrize("options", ABLATIONS, ids=lambda options: "-".join(k for k in options if options[k]) or "none")
@pytest.mark.parametrize("classes", [1, 3])
def test_every_ablation_trains_all_its_parameters(options, classes):
    torch.manual_seed(0)
    network = BrainSegDMIF(
        2, classes, **SMALL, **options
    )  # with its initial values, so that random numbers hide nothing
    network.apply(network.initialize)
    optimizer = torch.optim.Adam(network.parameters(), 3e-4)
    images, target = random_images(2, 2, 24, 28), torch.ones(2, classes, 24, 28)
    losses = []
    for _ in range(2):
        loss = F.mse_loss(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not missing and all(parameter.grad.isfinite().all() for parameter in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_ablations_remove_the_named_part():
    full = small()
    assert len(full.encoder.fusions) == 1 and len(full.decoder.paths) == 3 and full.decoder.prompts is not None
    assert len(small(dmif=False).encoder.fusions) == 0
    assert len(small(upsampling_decoder=False).decoder.paths) == 1
    assert small(prompt_generator=False).decoder.prompts is None
    inside = {*map(id, full.encoder.parameters()), *map(id, full.decoder.parameters())}
    assert inside == {*map(id, full.parameters())}


def test_without_fusion_the_encoders_mean_is_decoded():
    network, images = small(2, dmif=False).eval(), random_images(1, 2, 32, 32)
    means = []
    for channel, encoder in enumerate(network.encoder.encoders):
        whole = copy.deepcopy(encoder)  # its neck is the identity, so it returns tokens
        means.append(whole(images[:, [channel] * 3]))
    torch.testing.assert_close(network.encoder(images).features, network.encoder.neck(sum(means) / 2))


def test_fused_features_are_added_to_each_encoder():
    network, images = small(2, depth=3, global_attention=[1, 2]).eval(), random_images(1, 2, 32, 32)
    encoders, (first, last) = network.encoder.encoders, network.encoder.fusions
    streams = [e.patch_embed(images[:, [m] * 3]) + e.pos_embed for m, e in enumerate(encoders)]
    streams = [e.blocks[1](e.blocks[0](s)) for e, s in zip(encoders, streams, strict=True)]
    fused = first(torch.stack(streams, 1))
    streams = [e.blocks[2](s + fused) for e, s in zip(encoders, streams, strict=True)]
    expected = network.encoder.neck(last(torch.stack(streams, 1)).permute(0, 3, 1, 2))
    torch.testing.assert_close(network.encoder(images).features, expected)


@pytest.mark.parametrize("dmif", [True, False])
def test_permuting_modalities_with_their_encoders_changes_nothing(dmif):
    network, images = small(4, dmif=dmif).double(), random_images(2, 4, 24, 32, dtype=torch.float64)
    expected = network(images)
    order = [2, 0, 3, 1]
    network.encoder.encoders = nn.ModuleList(network.encoder.encoders[number] for number in order)
    torch.testing.assert_close(network(images[:, order]), expected)
    assert (network(images) - expected).abs().max() > 1e-3  # the encoders do differ


def test_a_subset_of_modalities_ignores_the_others():
    network, images = small(4, modalities=[1, 3]), random_images(1, 4, 32, 32)
    assert len(network.encoder.encoders) == 2
    other = images.clone()
    other[:, [0, 2]] += 1
    assert torch.equal(network(images), network(other))
    other[:, 3] += torch.linspace(0, 1, 32)
    assert (network(images) - network(other)).abs().max() > 1e-4
    alone = small(2)
    alone.load_state_dict(network.state_dict())
    torch.testing.assert_close(alone(images[:, [1, 3]]), network(images))
    assert small(1)(images[:, :1]).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("modalities", [None, (1, 2, 3), (0, 1)])
def test_size_of_the_paper(modalities):
    with torch.device("meta"):
        network = BrainSegDMIF(4, 2, modalities=modalities)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    encoders = sum(parameter.numel() for parameter in network.encoder.encoders.parameters())
    if modalities is None:
        assert parameters == pytest.approx(354e6, rel=0.02)  # Table 1
    assert parameters - encoders < 10e6


@pytest.mark.parametrize("size", [(32, 32), (19, 27), (48, 40), (70, 33)], ids=str)
def test_any_size_with_and_without_deep_supervision(size):
    network = small(deep_supervision=True)
    images = random_images(2, 3, *size)
    outputs = network(images)
    # The sizes of nnU-Net's targets: its trainer makes the scales, and its data augmentation rounds the sizes.
    scales = 1 / np.cumprod(np.array(ONE_OUTPUT_STRIDES), axis=0)[:-1]
    sizes = [[round(length * factor) for length, factor in zip(size, scale, strict=True)] for scale in scales]
    assert [tuple(output.shape) for output in outputs] == [(2, 2, *length) for length in sizes]
    network.decoder.deep_supervision = False
    assert torch.equal(network(images), outputs[0])


@pytest.mark.parametrize("size", [(128, 128), (120, 90), (256, 190)], ids=str)
@pytest.mark.parametrize("options", [{}, {"upsampling_decoder": False}], ids=["three scales", "SAM's path"])
def test_positions_are_kept(options, size):
    """A change in one corner of an image changes the logits there."""
    network = small(1, image_size=128, depth=1, global_attention=[0], prompt_generator=False, **options)
    with torch.no_grad():  # without attention, changes spread only over a patch and the convolutions
        network.encoder.encoders[0].blocks[0].attn.proj.weight.zero_()
        images = random_images(1, 1, *size)
        other = images.clone()
        other[:, :, : size[0] // 5, : size[1] // 5] += 3
        change = (network(other) - network(images)).abs().sum((0, 1))
    corner = change[: size[0] // 2, : size[1] // 2].sum()
    assert corner > 0.9 * change.sum()


def test_is_built_from_a_plan():
    arguments = {**SMALL, "conv_op": "torch.nn.modules.conv.Conv2d", "strides": [[1, 1], [4, 4], [4, 4]]}
    name = "nnunet_kd.networks.brainseg_dmif.BrainSegDMIF"
    network = get_network_from_plans(name, arguments, ["conv_op"], 4, 3, deep_supervision=True)
    assert [tuple(o.shape) for o in network(random_images(1, 4, 32, 32))] == [(1, 3, 32, 32), (1, 3, 8, 8)]
    again = get_network_from_plans(name, arguments, ["conv_op"], 4, 3, deep_supervision=False)
    again.load_state_dict(network.state_dict())


def test_activation_checkpointing_changes_only_the_memory():
    plain, saving = small(), small(activation_checkpointing=True)
    images = random_images(2, 3, 32, 32)
    for network in (plain, saving):
        network(images).square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other[1].grad, msg=name)
    assert kept_by_the_encoder(saving, images) < 0.5 * kept_by_the_encoder(plain, images)
    with torch.no_grad():
        assert torch.equal(plain(images), saving(images))


def kept_by_the_encoder(network, images):
    """Return the bytes that the forward pass saves for the gradient, without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.encoder(images)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("options", [{}, {"prompt_generator": False}], ids=["tokens", "no tokens"])
def test_an_exported_network_takes_any_batch(options):
    network = small(2, **options).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (random_images(2, 2, 24, 28),), dynamic_shapes=({0: batch},))
    images = random_images(3, 2, 24, 28)
    torch.testing.assert_close(program.module()(images), network(images))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision(checkpointing):
    network, images = small(activation_checkpointing=checkpointing), random_images(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images)
    logits.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    torch.testing.assert_close(logits.float(), network(images), atol=0.2, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_op": nn.Conv3d}, "segments slices: conv_op must be torch.nn.Conv2d, got"),
        (
            {"strides": [[1, 1], [2, 2]]},
            r"strides of BrainSegDMIF must be \[\[1, 1\], \[4, 4\], \[4, 4\]\], got \[\[1, 1\], \[2, 2\]\]",
        ),
        ({"modalities": [0, 3]}, r"modalities must be different channels of 0 to 2, got \[0, 3\]"),
        ({"modalities": [1, 1]}, r"got \[1, 1\]"),
        ({"modalities": []}, r"got \[\]"),
        ({"image_size": 40}, "image_size must be a multiple of the patch size 16, got 40"),
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads, 3, got 16"),
        ({"out_channels": 24}, "out_channels must be a multiple of 16, got 24"),
        ({"global_attention": [0]}, r"global_attention must ascend to the last block, 1, got \[0\]"),
        ({"global_attention": []}, r"got \[\]"),
        ({"global_attention": [1, 0, 1]}, r"got \[1, 0, 1\]"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 3, 32), (1, 3, 4, 32, 32)])
def test_images_of_another_kind_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected images \(B, 3, height, width\), got"):
        small()(torch.zeros(shape))
