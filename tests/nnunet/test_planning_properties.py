"""From any plans that nnU-Net can write, students are derived that nnU-Net builds and runs with the expected widths."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_kd.nnunet.planning import reduce_widths, student_plans
from nnunet_kd.nnunet.settings import read_settings

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@st.composite
def architectures(draw):
    """Draw a U-Net like those of nnU-Net's planner, with two to six stages and any widths, kernels and strides."""
    dim = draw(st.sampled_from([2, 3]))
    stages = draw(st.integers(2, 6))
    widths = draw(st.lists(st.integers(1, 320), min_size=stages, max_size=stages))
    if draw(st.booleans()):
        widths = widths[0]  # nnU-Net's networks also accept one number for all stages
    strides = [[1] * dim] + [[draw(st.sampled_from([1, 2])) for _ in range(dim)] for _ in range(stages - 1)]
    kernels = [[draw(st.sampled_from([1, 3])) for _ in range(dim)] for _ in range(stages)]
    residual = draw(st.booleans())
    blocks = {"n_blocks_per_stage": [1] * stages} if residual else {"n_conv_per_stage": [1] * stages}
    arguments = {
        "n_stages": stages,
        "features_per_stage": widths,
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": kernels,
        "strides": strides,
        **blocks,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    name = RESIDUAL if residual else PLAIN
    return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": imported}


def forward(architecture, channels, classes):
    """Return the network on the meta device, and the shape of its output for the second smallest patch."""
    arguments = architecture["arch_kwargs"]
    patch = [2 * int(torch.tensor(axis).prod()) for axis in zip(*arguments["strides"], strict=True)]
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"],
            arguments,
            architecture["_kw_requires_import"],
            channels,
            classes,
            allow_init=False,
            deep_supervision=False,
        )
        return network, patch, tuple(network(torch.empty(1, channels, *patch)).shape)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(architectures(), st.floats(1, 64), st.integers(1, 64), st.sampled_from([None, "dra_unet"]), st.integers(1, 4))
def test_every_student_is_built_and_runs(architecture, reduction, least, network, channels):
    # as if read from a file
    content = {"architecture": json.loads(json.dumps(architecture)), "patch_size": [4, 4], "batch_size": 2}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"c": content, "d": {"inherits_from": "c"}}}
    before = json.dumps(plans)
    student = student_plans(plans, reduction, least, name="student", network=network)
    assert json.dumps(plans) == before and student["plans_name"] == "student"
    arguments = architecture["arch_kwargs"]
    widths = arguments["features_per_stage"]
    widths = [widths] * arguments["n_stages"] if isinstance(widths, int) else widths
    reduced = student["configurations"]["c"]["architecture"]
    after = reduced["arch_kwargs"]["features_per_stage"]
    assert after == reduce_widths(widths, reduction, least)
    assert all(min(least, wide) <= narrow <= wide for narrow, wide in zip(after, widths, strict=True))
    assert read_settings(student).student.reduction == reduction
    built, patch, shape = forward(reduced, channels, 3)
    assert shape == (1, 3, *patch)
    assert list(built.encoder.output_channels) == after
