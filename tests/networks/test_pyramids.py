"""Encoders of other networks in nnU-Net's form: MONAI's MedNeXt teaches a U-Net by its features."""

from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import MedNeXt
from torch import nn

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import TERMS
from nnunet_kd.distillation.student import StudentOutputs
from nnunet_kd.networks.library import LibraryNetwork
from nnunet_kd.networks.pyramids import pyramid_of
from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.teachers.teacher import Teacher
from tests.small_networks import unet

OPTIONS = {"blocks_down": [1, 2], "blocks_up": [1, 1], "kernel_size": 3, "use_residual_connection": True}


def mednext(dim=2, **options):
    torch.manual_seed(0)
    return MedNeXt(dim, 4, 2, 3, **{**OPTIONS, **options}).eval()


@pytest.mark.parametrize("dim", [2, 3])
def test_encoder_and_decoder_of_a_mednext_are_the_network(dim):
    network, images = mednext(dim), torch.randn(2, 2, *(16, 12, 8)[:dim])
    pyramid = pyramid_of(network)
    stages = encoder_stages(pyramid)
    assert stages.widths == (4, 8, 16) and stages.strides == tuple((step,) * dim for step in (1, 2, 4))
    with torch.no_grad():
        features = pyramid.encoder(images)
        assert torch.equal(pyramid.decoder(features), network(images))
    grids = [
        tuple(side // step for side, step in zip(images.shape[2:], steps, strict=True)) for steps in stages.strides
    ]
    assert [tuple(one.shape) for one in features] == [
        (2, width, *grid) for width, grid in zip(stages.widths, grids, strict=True)
    ]
    assert {id(weight) for weight in pyramid.parameters()} == {id(weight) for weight in network.parameters()}


def test_a_network_with_stages_is_its_own_pyramid():
    network = unet()
    assert pyramid_of(network) is network


def test_subclasses_have_the_adapter_of_their_class_and_other_networks_none():
    class Own(MedNeXt):
        pass

    assert len(encoder_stages(pyramid_of(Own(2, 4, 2, 3, **OPTIONS))).widths) == 3
    message = "^the teacher's network, torch.Linear, has no encoder stages whose features could be distilled: use a"
    with pytest.raises(NotImplementedError, match=message):
        pyramid_of(nn.Linear(1, 1))
    library = LibraryNetwork(2, 3, network="monai.UNet", channels=[4, 8])
    with pytest.raises(NotImplementedError, match="the teacher's network, monai.UNet, has no encoder stages"):
        pyramid_of(library)


@pytest.mark.parametrize("name", ["dcd", "fitnets"])
def test_a_mednext_of_the_plans_teaches_a_u_net(name):
    """The loss reaches the student and the adapters; the decoder works on features that FreeKD's prompts change."""
    network = LibraryNetwork(2, 3, network="monai.MedNeXt", init_filters=4, deep_supervision=True, **OPTIONS)
    teacher, student, images = Teacher(network, logits=True), unet(), torch.randn(2, 2, 16, 16)
    (full,), features = teacher(images)
    assert full.shape == (2, 3, 16, 16) and torch.equal(teacher.decode(features), full)
    distiller = Distiller([TERMS[name].changed({"ramp": None}).build(10)], SimpleNamespace(num_classes=3))
    distiller.attach(teacher, distiller.check(encoder_stages(student), teacher.stages))
    assert distiller.stages == [(0, 0), (1, 1), (2, 2)]
    adapters = distiller.adapters(student)
    outputs = StudentOutputs([], student.encoder(images), [])
    (loss,) = distiller(images, outputs, images, 0, adapters=adapters, task_loss=None).values()
    loss.backward()
    learning = [*student.encoder.parameters(), *adapters.parameters()]
    assert loss > 0 and all(parameter.grad is not None for parameter in learning)
    assert all(parameter.grad is None for parameter in network.parameters())
    logits = Teacher(network, features=False, logits=True)(images)[0]
    assert len(logits) == 1 and torch.equal(logits[0], full)
