"""A small BrainSegDMIF with suitable images."""

import torch

from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF

# The encoder of tests.small_networks.tiny_sam, for images of half its size.
SMALL = {
    "image_size": 32,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attention": [1],
    "window_size": 3,
    "out_channels": 32,
}


def small(channels=3, classes=2, seed=0, **options):
    """Build a network whose parameters all differ from zero, so that each of them has an effect."""
    torch.manual_seed(seed)
    network = BrainSegDMIF(channels, classes, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def random_images(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
