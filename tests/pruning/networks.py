"""Networks and images for the tests of pruning."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_kd.pruning.selection import selected_weights

EVERYWHERE = 10**9  # positions


def images(*shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def thinner(teacher, student):
    student.load_state_dict(selected_weights(teacher, student))
    return student


def unet(width, dim=3, kind=PlainConvUNet, **options):
    torch.manual_seed(0)
    blocks = {"n_conv_per_stage": 2} if kind is PlainConvUNet else {"n_blocks_per_stage": 2}
    network = kind(
        input_channels=2,
        n_stages=3,
        features_per_stage=[width, 2 * width, 4 * width],
        conv_op=(nn.Conv2d, nn.Conv3d)[dim - 2],
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=3,
        **{"n_conv_per_stage_decoder": 1, "conv_bias": True, "nonlin": nn.LeakyReLU, **blocks},
        **{"norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d)[dim - 2], "norm_op_kwargs": {"affine": True}, **options},
    )
    return network.eval()


def with_random_vectors(network):
    """Give normalisations different weights for each channel."""
    torch.manual_seed(1)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 1:
            tensor.data.uniform_(0.5, 1.5)
    return network.eval()
