"""The published transform of DCD against numbers that the authors' code gave.

``dcd_published.npz`` holds inputs, outputs and gradients of ``StageWiseDCDLoss`` of ClinicaAlpha/DCD-3D-MedSeg at
7cf0ca6, in float32 on a CPU: several wavelets, levels, selections of bands, and grids with odd axes and axes shorter
than the filter.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_kd.losses import DCDLoss
from nnunet_kd.losses.dcd_published import published_details
from tests.losses.random_maps import SHAPES, random_maps

RECORDED = np.load(Path(__file__).with_name("dcd_published.npz"))
CASES = sorted({name.partition("_")[0] for name in RECORDED.files})


def recorded(case, name):
    return torch.from_numpy(RECORDED[f"{case}_{name}"])


def loss_and_phi(case):
    wavelet, levels, bands = RECORDED[f"{case}_options"]
    loss = DCDLoss(str(wavelet), int(levels), str(bands), transform="published")
    student, teacher = recorded(case, "student"), recorded(case, "teacher")
    phi = loss.projection(student.shape[1], teacher.shape[1], 3)
    if f"{case}_weight" in RECORDED:
        phi.weight.data = recorded(case, "weight").view_as(phi.weight)
        phi.bias.data = recorded(case, "bias")
    else:
        assert isinstance(phi, nn.Identity)
    return loss, phi, student.requires_grad_(), teacher


def assert_close(ours, theirs):
    """Relative to the largest element, since float32 rounds sums to that."""
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("wrapped", [False, True], ids=["transformed first", "projected first"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case, wrapped):
    loss, phi, student, teacher = loss_and_phi(case)
    value = loss(student, teacher, nn.Sequential(phi) if wrapped else phi)
    torch.testing.assert_close(value, recorded(case, "loss"), rtol=1e-5, atol=0)
    value.backward()
    assert_close(student.grad, recorded(case, "student_gradient"))
    if not isinstance(phi, nn.Identity):
        assert_close(phi.weight.grad.flatten(1), recorded(case, "weight_gradient"))
        assert_close(phi.bias.grad, recorded(case, "bias_gradient"))


def test_both_ways_occur_in_the_recorded_cases():
    """The student is transformed at its own width only where the teacher is at least twice as wide."""
    widths = [(recorded(case, "student").shape[1], recorded(case, "teacher").shape[1]) for case in CASES]
    assert {2 * narrow <= wide for narrow, wide in widths} == {True, False}


def test_weights_hold_for_one_transform():
    """With db4 the published transform shrinks the loss, and more where axes are shorter than the filter."""
    ratios = []
    for side in (32, 8, 4):
        student, teacher = random_maps([side] * 3, 4, 0), random_maps([side] * 3, 4, 1)
        ratios.append(float(DCDLoss()(student, teacher) / DCDLoss(transform="published")(student, teacher)))
    assert 1 < ratios[0] < ratios[1] < ratios[2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_bands_together_are_taken_axis_by_axis(shape):
    features = random_maps(shape, 2, 0)
    together = published_details(features, "db2", 1, "all")[0]
    for axis in range(2, features.ndim):
        lines = features.movedim(axis, -1)
        one = published_details(lines.reshape(-1, 1, lines.shape[-1]), "db2", 1, "all")[0]
        features = one.reshape(*lines.shape[:-1], one.shape[-1]).movedim(-1, axis)
    torch.testing.assert_close(together, features)


@pytest.mark.parametrize("bands", ["directional", "detail", "all", "lll", "hhh"])
def test_the_bands_of_a_slice_add_up(bands):
    features = random_maps((7, 6), 3, 0)
    parts = {name: published_details(features, "db2", 1, name)[0] for name in ("directional", "hhh", "lll", "all")}
    expected = {**parts, "detail": parts["directional"] + parts["hhh"]}
    torch.testing.assert_close(published_details(features, "db2", 1, bands)[0], expected[bands])
    torch.testing.assert_close(parts["all"], parts["directional"] + parts["hhh"] + parts["lll"])


def test_an_axis_of_one_sample_leaves_the_level_out():
    student = random_maps((1, 6, 6), 3, 0).requires_grad_()
    loss = DCDLoss("haar", transform="published")
    value = loss(student, random_maps((1, 6, 6), 3, 1))
    value.backward()
    assert value == 0 and not student.grad.any()


@pytest.mark.parametrize("options", [{"reconstruct": False}, {"level_weighting": "energy"}], ids=str)
def test_options_of_the_exact_transform_are_refused(options):
    with pytest.raises(ValueError, match="transform 'published' reconstructs each level alone: remove reconstruct"):
        DCDLoss(transform="published", **options)


def test_another_transform_is_refused():
    with pytest.raises(ValueError, match="transform must be 'exact' or 'published', got 'zero'"):
        DCDLoss(transform="zero")


def test_the_exact_transform_reads_in_records_as_before():
    assert "transform" not in repr(DCDLoss()) and "transform='published'" in repr(DCDLoss(transform="published"))
