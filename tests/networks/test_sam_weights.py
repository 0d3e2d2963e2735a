import copy
from functools import partial

import pytest
import torch

from nnunet_kd.networks.sam_weights import load_sam_encoder
from tests.networks.small_brainseg_dmif import random_images, small
from tests.small_networks import tiny_sam


def test_published_weights_reach_every_encoder_with_resampled_positions():
    torch.manual_seed(0)
    sam = tiny_sam()
    with torch.no_grad():
        for parameter in sam.image_encoder.parameters():
            parameter.normal_()
    network = small(3)
    load_sam_encoder(network, sam.state_dict())
    theirs = sam.image_encoder.state_dict()
    for encoder in network.encoder.encoders:
        ours = encoder.state_dict()
        moved = {"pos_embed", "blocks.1.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - moved)
        assert ours["pos_embed"].shape == (1, 2, 2, 16) and ours["blocks.1.attn.rel_pos_h"].shape == (3, 8)
        # segment_anything itself resamples relative positions for an image of another size.
        tokens = random_images(1, 2, 2, 16)
        torch.testing.assert_close(encoder.blocks[1](tokens), sam.image_encoder.blocks[1](tokens))
        torch.testing.assert_close(ours["pos_embed"].mean(), theirs["pos_embed"].mean(), atol=0.05, rtol=0)
    for name, value in network.encoder.neck.state_dict().items():
        assert torch.equal(value, theirs[f"neck.{name}"])


def test_positions_keep_their_order_and_a_network_of_the_same_size_is_that_sam():
    torch.manual_seed(0)
    sam = tiny_sam()
    with torch.no_grad():
        sam.image_encoder.pos_embed.copy_(torch.arange(4.0)[:, None, None] - torch.arange(4.0)[:, None])
    network = small(1)
    load_sam_encoder(network, sam.state_dict())
    table = network.encoder.encoders[0].pos_embed.detach()[0, :, :, 0]
    assert table[0, 0] == pytest.approx(0, abs=1e-5) and table[1, 0] > 1 and table[0, 1] < -1
    same = small(1, image_size=64, dmif=False).eval()
    load_sam_encoder(same, sam.state_dict())
    images = random_images(2, 1, 64, 64)
    torch.testing.assert_close(same.encoder(images).features, sam.image_encoder(images.expand(-1, 3, -1, -1)))


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded():
    network = small(2)
    before = copy.deepcopy(network.state_dict())
    weights = tiny_sam().state_dict()
    load = partial(load_sam_encoder, network)
    lacking = {name: value for name, value in weights.items() if "blocks.1.norm2" not in name}
    with pytest.raises(ValueError, match="lacks image_encoder.blocks.1.norm2.bias, image_encoder.blocks.1.norm2.weig"):
        load(lacking)
    with pytest.raises(ValueError, match="lacks image_encoder.blocks.0.attn.proj.bias, .* and [0-9]+ more"):
        load({name: value for name, value in weights.items() if "image_encoder" not in name})
    with pytest.raises(ValueError, match="it has image_encoder.blocks.2.norm1.bias"):
        load({**weights, "image_encoder.blocks.2.norm1.bias": torch.zeros(16)})
    with pytest.raises(ValueError, match=r"blocks.0.norm1.bias has the shape \(17,\), the network's has \(16,\)"):
        load({**weights, "image_encoder.blocks.0.norm1.bias": torch.zeros(17)})
    with pytest.raises(ValueError, match=r"blocks.0.attn.rel_pos_h has the shape \(7, 8\), the network's has \(5, 8\)"):
        load({**weights, "image_encoder.blocks.0.attn.rel_pos_h": torch.zeros(7, 8)})  # other windows
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
