"""Teachers of other channels, labels, intensities and spacings answer for a student's patches."""

import copy
import math

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from torch import nn

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.settings import TeacherSettings
from nnunet_kd.teachers.adaptation import Adaptation, AdaptedTeacher, take_channels

LABELS = {"background": 0, "liver": 1, "left": 2, "right": 3}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
SOFT = {"mean": 40.0, "std": 50.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}
WIDE = {"mean": -10.0, "std": 200.0, "percentile_00_5": -80.0, "percentile_99_5": 500.0}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def small_unet(channels, classes=3):
    """Return a 3-D U-Net of nnU-Net's whose coarsest stage has strides of 4."""
    torch.manual_seed(0)
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(
        *(channels, 3, [4, 8, 8], nn.Conv3d, 3, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], 1, classes, 1),
        conv_bias=True,
        **norm,
    ).eval()


def experiment(labels=None, channels=("CT",), spacing=(1, 1, 1), scheme="ZScoreNormalization", statistics=None):
    """Return the plans and the data set of a network with patches of 16 x 24 x 24 voxels, two at a time."""
    configuration = {
        "spacing": list(spacing),
        "patch_size": [16, 24, 24],
        "batch_size": 2,
        "normalization_schemes": [scheme] * len(channels),
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {
        "plans_name": "P",
        "dataset_name": "D",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {str(n): statistics for n in range(len(channels))},
    }
    labels = labels or {"background": 0, "liver": 1}
    dataset = {"channel_names": {str(n): name for n, name in enumerate(channels)}, "labels": labels}
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    return Experiment(plans, "3d_fullres", dataset)


def between(teacher, student, **settings):
    return Adaptation.between(teacher, student, TeacherSettings(**settings))


@pytest.mark.parametrize("channels", [(0, 2), (2, 0), (1,)])
def test_missing_channels_count_as_zeros(channels):
    network = small_unet(channels=3)
    thinned = copy.deepcopy(network)
    shapes = {name: weight.shape for name, weight in network.state_dict().items()}
    inputs = dict.fromkeys([name for name, shape in shapes.items() if len(shape) > 1 and shape[1] == 3], 1)
    take_channels(thinned, inputs, channels)
    images = torch.randn(2, len(channels), 16, 16, 16, generator=torch.Generator().manual_seed(0))
    filled = torch.zeros(2, 3, 16, 16, 16)
    filled[:, list(channels)] = images
    torch.testing.assert_close(thinned(images), network(filled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2)])
def test_other_layers_cannot_lose_channels(layer):
    network = nn.Sequential(layer)
    with pytest.raises(ValueError, match="^0.weight depends on the number of input channels, but is not"):
        take_channels(network, {"0.weight": 0}, [1, 2])


def test_ct_intensities_are_those_of_the_teachers_normalisation():
    """Compare with nnU-Net's own normalisation of the raw intensities, which the student's window contains."""
    adaptation = between(
        experiment(scheme="CTNormalization", statistics=WIDE), experiment(scheme="CTNormalization", statistics=SOFT)
    )
    raw = np.linspace(SOFT["percentile_00_5"], SOFT["percentile_99_5"], 64, dtype=np.float32).reshape(4, 4, 4)
    ours, theirs = (CTNormalization(False, one, np.float32).run(raw.copy(), None) for one in (SOFT, WIDE))
    seen = adaptation.images(torch.from_numpy(ours)[None, None], small_unet(channels=1))
    np.testing.assert_allclose(seen[0, 0].numpy(), theirs, atol=1e-5)
    same = between(
        experiment(scheme="CTNormalization", statistics=SOFT), experiment(scheme="CTNormalization", statistics=SOFT)
    )
    assert same.windows == (None,)
    other = between(experiment(scheme="CTNormalization", statistics=SOFT), experiment())
    assert other.windows == (None,)
    assert other.describe() == ["normalised by CTNormalization, the student by ZScoreNormalization"]


def test_patches_are_resampled_to_the_teachers_spacing():
    network = small_unet(channels=1)
    images = torch.linspace(0, 1, 16).reshape(1, 1, 16, 1, 1).expand(1, 1, 16, 16, 16)
    adaptation = between(experiment(), experiment(spacing=(1.5, 1, 1)))
    seen = adaptation.images(images, network)
    assert seen.shape == (1, 1, 24, 16, 16)
    torch.testing.assert_close(seen[0, 0, 1:-1, 0, 0].diff(), torch.full((21,), 1 / 15 / 1.5), rtol=1e-3, atol=1e-4)
    same = between(experiment(), experiment(spacing=(1.0005, 1, 1)))
    assert same.images(images, network) is images and same.describe() == []


@pytest.mark.parametrize("spacing", [(1.3, 1.3, 1.3), (0.3, 0.3, 0.3), (0.01, 1, 1), (4, 4, 4)])
def test_the_teacher_sees_sizes_that_fit_its_strides_and_memory(spacing):
    network = small_unet(channels=1)
    adaptation = between(experiment(), experiment(spacing=spacing))
    seen = adaptation.images(torch.zeros(2, 1, 16, 24, 24), network)
    assert all(side % 4 == 0 for side in seen.shape[2:])
    assert network(seen).shape[2:] == seen.shape[2:]
    assert math.prod(seen.shape[2:]) * 2 <= 1.5 * adaptation.voxels  # rounded to the strides
    if spacing == (1.3, 1.3, 1.3):
        assert seen.shape[2:] == (16, 24, 24)  # of 20.8, 31.2, 31.2 no more fit


def test_answers_are_on_the_students_grid_for_the_students_structures():
    network = small_unet(channels=1, classes=4)
    adaptation = between(
        experiment(LABELS),
        experiment({"background": 0, "lung": 1}, spacing=(0.5, 1, 1)),
        label_map={"lung": ["left", "right"]},
    )
    images = torch.randn(1, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    answer = AdaptedTeacher(network, adaptation)(images)
    seen = nn.functional.interpolate(images, (16, 16, 16), mode="trilinear")
    chances = network(seen).softmax(1)
    merged = torch.stack((chances[:, 0] + chances[:, 1], chances[:, 2] + chances[:, 3]), 1).log()
    expected = nn.functional.interpolate(merged, (32, 16, 16), mode="trilinear")
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theirs", "ours", "label_map", "mixing"),
    [
        (LABELS, {"background": 0, "lung": 1}, {"lung": ["left", "right"]}, [[1, 0, 0, 0], [0, 0, 0.5, 0.5]]),
        (LABELS, {"background": 0, "left": 2, "liver": 1}, None, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
        (
            {"background": 0, "oedema": 1, "core": 2},
            REGIONS,
            {"whole": ["oedema", "core"]},
            [[-1, 0.5, 0.5], [-1, 0, 1]],
        ),
        (REGIONS, {"background": 0, "whole": 1}, None, [[0, 0], [1, 0]]),
        (REGIONS, {"background": 0, "core": [2, 1], "whole": 1}, None, [[0, 1], [1, 0]]),
    ],
)
def test_heads_before_the_fit_are_near_the_mapped_ones(theirs, ours, label_map, mixing):
    found = between(experiment(theirs), experiment(ours), label_map=label_map)
    assert found.mixing.tolist() == mixing


def test_the_differences_are_described():
    found = between(
        experiment(LABELS, ("T1", "T2", "FLAIR"), (1, 1, 1)),
        experiment({"background": 0, "lung": 1}, ("FLAIR", "T1"), (3, 1.5, 1.5)),
        label_map={"lung": ["left", "right"]},
    )
    assert found.describe() == [
        "channels FLAIR, T1 without T2",
        "structures lung from left, right",
        "3 x 1.5 x 1.5 of its voxels in one of the student's",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [0, 3]}, r"^nnunet_kd.teacher.channels: the channel map names channel 3, but the teacher has"),
        ({"label_map": {"lung": ["lefft"]}}, r"^nnunet_kd.teacher.label_map: the label map names 'lefft', but the"),
    ],
)
def test_maps_that_name_what_is_not_there_are_refused(settings, message):
    teacher = experiment(LABELS, ("T1", "T2", "FLAIR"))
    with pytest.raises(ValueError, match=message):
        between(teacher, experiment({"background": 0, "lung": 1}, ("T1", "T2")), **settings)
