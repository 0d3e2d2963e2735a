"""The U-Net that nnU-Net's default planner chooses for a patch, for plans whose network cannot be made narrower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

# The settings of nnU-Net's ExperimentPlanner, which cannot be constructed without a raw data set.
_BASE_WIDTH = 32
_WIDEST = {2: 512, 3: 320}  # by the number of axes
_CONVOLUTIONS = 2  # per stage
_SMALLEST_MAP = 4  # voxels per axis at the lowest resolution
_MOST_POOLINGS = 999999


def default_network(spacing: Sequence[float], patch_size: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """Return nnU-Net's default U-Net for a patch.

    Args:
        spacing: The voxel size in mm.
        patch_size: The patch in voxels, with the same axes.

    Returns:
        The ``architecture`` for plans, and the patch size, rounded up so that the network can divide it.
    """
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch_size, _SMALLEST_MAP, _MOST_POOLINGS)
    stages, axes = len(strides), len(spacing)
    convolution = convert_dim_to_conv_op(axes)
    arguments = {
        "n_stages": stages,
        "features_per_stage": [min(_BASE_WIDTH * 2**stage, _WIDEST[axes]) for stage in range(stages)],
        "conv_op": _name(convolution),
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage": [_CONVOLUTIONS] * stages,
        "n_conv_per_stage_decoder": [_CONVOLUTIONS] * (stages - 1),
        "conv_bias": True,
        "norm_op": _name(get_matching_instancenorm(convolution)),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": _name(PlainConvUNet),
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return architecture, [int(side) for side in patch]


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__name__}"
