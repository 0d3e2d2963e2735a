"""KD-SAM's network, compared with the segment_anything package and torchvision."""

import json

import pytest
import torch
import torchvision
from segment_anything import sam_model_registry
from torch import nn

from nnunet_kd.networks.kd_sam import KDSAM, content_size, load_resnet, load_sam_decoder, to_frame
from tests.small_networks import tiny_sam

TINY = {"image_size": 64, "blocks": (1, 1, 1, 1), "embedding_channels": 32, "mlp_dim": 64, "num_heads": 4}
TINY["mask_channels"] = 4


def tiny(channels=3, classes=3, **options):
    torch.manual_seed(0)
    return KDSAM(channels, classes, **{**TINY, **options})


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_size_and_shape_of_the_real_encoder():
    with torch.device("meta"):
        encoder = KDSAM(3, 2).encoder
        embedding = encoder(torch.empty(1, 3, 600, 450))
        resnet = torchvision.models.resnet50()
    assert embedding.shape == (1, 256, 64, 64)  # the shape of segment_anything's embeddings at 1024 x 1024
    assert count(encoder) <= 26.4e6
    neck = 2048 * 256 + 2 * 256 + 256 * 256 * 9 + 2 * 256
    assert count(encoder) == count(resnet) - count(resnet.fc) + neck
    expected = {name for name in resnet.state_dict() if not name.startswith("fc.")}
    assert set(encoder.resnet.state_dict()) == expected


def test_sams_own_decoder_is_loaded_key_by_key():
    """The network has the published size, and the state dict the published format."""
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]()
    weights = sam.state_dict()
    assert len(weights) == 314 and "mask_decoder.iou_prediction_head.layers.2.weight" in weights
    network = KDSAM(3, 6)  # a background and five structures, so the first mask is used twice
    load_sam_decoder(network, weights)
    loaded = network.decoder.state_dict()
    of_sam = {name: value for name, value in weights.items() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    assert {name for name in loaded if "mlps.4" not in name} == set(of_sam)
    changed = ("mask_tokens", "iou_prediction_head.layers.2")
    for name, value in of_sam.items():
        if not any(part in name for part in changed):
            assert torch.equal(loaded[name], value), name
    tokens = of_sam["mask_decoder.mask_tokens.weight"]
    assert torch.equal(loaded["mask_decoder.mask_tokens.weight"], tokens[[0, 1, 2, 3, 0]])

    # With as many structures as SAM has masks, keys and shapes match without any change.
    KDSAM(3, 4, background=False).decoder.load_state_dict(of_sam)


def test_masks_are_those_of_sams_decoder_without_prompts():
    torch.manual_seed(1)
    sam = tiny_sam().eval()
    network = tiny(classes=4, background=False).eval()
    load_sam_decoder(network, sam.state_dict())
    images = torch.randn(3, 3, 40, 56)
    embeddings = network.encoder(images)
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    for number, embedding in enumerate(embeddings):
        masks, _ = sam.mask_decoder.predict_masks(embedding[None], sam.prompt_encoder.get_dense_pe(), sparse, dense)
        expected = sam.postprocess_masks(masks, content_size((40, 56), 64), (40, 56))
        torch.testing.assert_close(network(images)[number], expected[0], rtol=1e-4, atol=1e-4)


def test_the_background_has_logit_zero():
    images = torch.randn(2, 3, 40, 56)
    logits = tiny(classes=2).eval()(images)
    assert logits.shape == (2, 2, 40, 56) and not logits[:, 0].any()
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())


@pytest.mark.parametrize("size", [(40, 56), (64, 64), (33, 90), (128, 100), (7, 5)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_and_number_of_channels(size, channels):
    network = tiny(channels)
    logits = network(torch.randn(2, channels, *size))
    assert logits.shape == (2, 3, *size)
    network.decoder.deep_supervision = True
    fine, coarse = network(torch.randn(2, channels, *size))
    assert fine.shape == (2, 3, *size) and coarse.shape == (2, 3, *(max(round(side / 4), 1) for side in size))


def test_the_frame_is_sams():
    from segment_anything.utils.transforms import ResizeLongestSide

    for size in ((40, 56), (300, 200), (64, 64)):
        image = torch.rand(1, 3, *size)
        height, width = content_size(size, 64)
        assert (height, width) == ResizeLongestSide.get_preprocess_shape(*size, 64)
        framed = to_frame(image, 64)
        picture = (255 * image[0]).byte().permute(1, 2, 0).numpy()
        resized = torch.from_numpy(ResizeLongestSide(64).apply_image(picture)).permute(2, 0, 1) / 255
        torch.testing.assert_close(framed[0, :, :height, :width], resized, atol=2 / 255, rtol=0)
        assert framed.shape == (1, 3, 64, 64)
        assert not framed[..., height:, :].any() and not framed[..., width:].any()


def test_masks_are_returned_to_their_place():
    """A mask that equals the image in SAM's frame returns to its place in the image."""
    image = torch.zeros(1, 1, 48, 80)
    image[..., 12:36, 20:50] = 1
    framed = to_frame(image, 64)
    height, width = content_size((48, 80), 64)
    back = nn.functional.interpolate(framed[..., :height, :width], (48, 80), mode="bilinear", align_corners=False)
    assert ((back > 0.5) == (image > 0.5)).float().mean() > 0.99


def test_unused_parts_of_sam_need_no_gradient():
    network = tiny()
    network(torch.randn(2, 3, 40, 56)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_resnet_starts_from_a_classifiers_weights():
    torch.manual_seed(3)
    weights = torchvision.models.resnet50().state_dict()
    network = tiny(4, blocks=(3, 4, 6, 3))
    load_resnet(network, weights)
    first = network.encoder.resnet.conv1.weight
    torch.testing.assert_close(first.sum(1), weights["conv1.weight"].sum(1))
    assert torch.equal(network.encoder.resnet.layer4[2].conv3.weight, weights["layer4.2.conv3.weight"])
    with pytest.raises(ValueError, match="do not fit the ResNet of KD-SAM"):
        load_resnet(tiny(), weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conv_op": nn.Conv3d}, "KDSAM segments slices: conv_op must be torch.nn.Conv2d"),
        ({"strides": [[1, 1], [2, 2]]}, "strides of KDSAM must be"),
        ({"image_size": 72}, "must be a multiple of 32, got 72"),
    ],
)
def test_invalid_options(options, words):
    with pytest.raises(ValueError, match=words):
        tiny(**options)


def test_a_background_alone_and_foreign_weights():
    with pytest.raises(ValueError, match="num_classes must leave a structure besides the background, got 1"):
        tiny(classes=1)
    with pytest.raises(ValueError, match=r"mask_decoder\.mask_tokens\.weight is missing"):
        load_sam_decoder(tiny(), {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit the decoder of KD-SAM"):
        load_sam_decoder(tiny(embedding_channels=64), tiny_sam().state_dict())


def test_plans_can_name_it(workspace):
    from nnunet_kd.cli import main

    assert main(["plan", "-d", "598", "--network", "kd_sam"]) == 0
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_kd_sam.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    content = plans["configurations"]["2d"]
    assert content["architecture"]["network_class_name"] == "nnunet_kd.networks.kd_sam.KDSAM"
    assert content["architecture"]["arch_kwargs"]["background"] is True and content["batch_size"] == 16
