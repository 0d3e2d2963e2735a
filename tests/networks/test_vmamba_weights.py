"""VM-UNet that starts from the weights of VMamba."""

import argparse
import zipfile

import pytest
import torch

from nnunet_kd.networks.vm_unet import VMUNet
from nnunet_kd.networks.vmamba_weights import load_vmamba, read_vmamba
from tests.vmamba_weights import published_encoder, vmamba_state

WIDTHS = (20, 40, 80, 160)  # a rank of the step sizes above 1 in every stage
IMAGE = (1, 3, 64, 32)


def network(channels=3, **options):
    torch.manual_seed(0)
    return VMUNet(channels, 1, features_per_stage=list(WIDTHS), **options).eval()


def close(ours, theirs):
    scale = theirs.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


def test_the_encoder_computes_what_vmambas_computes():
    state, images = vmamba_state(WIDTHS, (2, 2, 2, 2)), torch.randn(IMAGE)
    student = network()
    assert load_vmamba(student, state) == []
    with torch.no_grad():
        for ours, theirs in zip(student.encoder(images), published_encoder(state, images), strict=True):
            close(ours, theirs)


def test_every_parameter_of_the_published_class_has_its_place_at_full_size():
    """With VMamba-S's widths; of its 27 blocks in the third stage the first two are taken."""
    state = vmamba_state((96, 192, 384, 768), (2, 2, 3, 2))
    with torch.device("meta"):
        student = VMUNet(3, 1)
    given = {name: value.to("meta") for name, value in state.items()}
    assert load_vmamba(student, given) == []


def test_the_decoder_gets_the_blocks_of_the_same_resolution():
    state = vmamba_state(WIDTHS, (2, 2, 4, 2))
    student = network(depths_decoder=[2, 2, 2, 1])
    head, expansion = student.decoder.seg_layers[-1].weight.clone(), student.decoder.final.expand.weight.clone()
    load_vmamba(student, state)
    sequences = [student.decoder.bottleneck, *(stage.blocks for stage in student.decoder.stages)]
    assert [len(sequence) for sequence in sequences] == [2, 2, 2, 1]
    for layer, sequence in zip((3, 2, 1, 0), sequences, strict=True):
        for block, module in enumerate(sequence):
            name = f"layers.{layer}.blocks.{block}.self_attention"
            assert torch.equal(module.mixer.reduce.weight, state[f"{name}.out_proj.weight"])
            assert torch.equal(module.mixer.A_log, state[f"{name}.A_logs"])
    assert torch.equal(student.decoder.seg_layers[-1].weight, head)
    assert torch.equal(student.decoder.final.expand.weight, expansion)


def test_images_of_other_numbers_of_channels():
    state = vmamba_state(WIDTHS, (2, 2, 2, 2))
    grey = network(1)
    assert load_vmamba(grey, state) == []
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():  # the published code repeats the channel
        close(grey.encoder(image)[0], published_encoder(state, image.expand(1, 3, 32, 32))[0])
    four = network(4)
    before = four.encoder.stages[0][0].project.weight.clone()
    assert load_vmamba(four, state) == ["encoder.stages.0.0.project.weight"]
    assert torch.equal(four.encoder.stages[0][0].project.weight, before)
    assert torch.equal(four.encoder.stages[0][0].project.bias, state["patch_embed.proj.bias"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": 3}, "lack layers.0.blocks.2.ln_1.weight: the network has more blocks, or the file is of another"),
        ({"features_per_stage": [24, 40, 80, 160]}, r"patch_embed.proj.weight of VMamba has the shape \(20, 3, 4, 4\)"),
        ({"state_size": 8}, "layers.0.blocks.0.self_attention.x_proj_weight of VMamba has the shape"),
        ({"strides": [1, 4, 2, 2, [1, 4]]}, r"VMamba has the strides 4, 2, 2 and 2, the network has .*\(1, 4\)"),
    ],
)
def test_other_networks_are_refused_and_keep_their_weights(options, message):
    torch.manual_seed(0)
    student = VMUNet(3, 1, **{"features_per_stage": list(WIDTHS), **options})
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_vmamba(student, vmamba_state(WIDTHS, (2, 2, 2, 2)))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_files(tmp_path):
    state = vmamba_state(WIDTHS, (1, 1, 1, 1))
    path = tmp_path / "vmamba.pth"
    for content in (state, {"model": state, "epoch": 238}):
        torch.save(content, path)
        assert read_vmamba(path).keys() == state.keys()
    with pytest.raises(FileNotFoundError, match="there are no weights of VMamba in .*missing.pth"):
        read_vmamba(tmp_path / "missing.pth")
    torch.save({"model": state, "config": argparse.Namespace()}, path)
    with pytest.raises(ValueError, match=r"holds more than weights. If you trust its source, save torch.load\(FILE"):
        read_vmamba(path)
    torch.save({"model": [1, 2]}, path)
    with pytest.raises(ValueError, match="does not hold VMamba's weights"):
        read_vmamba(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"0" * 10**6)
    with pytest.raises(ValueError, match="it is compressed"):
        read_vmamba(path)
