"""Small networks for tests."""

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def unet(width=4):
    """A 2-D nnU-Net of three stages, two channels in, three classes out."""
    widths, strides = [width, 2 * width, 4 * width], [[1, 1], [2, 2], [2, 2]]
    norm = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(2, 3, widths, nn.Conv2d, 3, strides, 1, 3, 1, conv_bias=True, deep_supervision=True, **norm)
