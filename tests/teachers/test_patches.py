"""Teachers whose network takes patches of one size only, or of multiples of a number."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch import nn

from nnunet_kd.networks.library import LibraryNetwork
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.patches import check_patch
from nnunet_kd.teachers.teacher import Teacher
from tests.small_networks import unet

OWN = [16, 16, 24]


def primus():
    options = {"eva_depth": 1, "eva_numheads": 2, "embed_dim": 24, "input_shape": OWN, "patch_embed_size": (8, 8, 8)}
    return Primus(2, num_classes=3, **options, init_values=0.1, scale_attn_inner=True)


def mednext():
    return LibraryNetwork(
        2, 3, network="monai.MedNeXt", conv_op=nn.Conv3d, init_filters=4, blocks_down=[1, 1], blocks_up=[1, 1]
    )


def check(network, patch, own=OWN):
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}}
    content = {"patch_size": own, "architecture": {"network_class_name": "x", "arch_kwargs": {}}}
    plans = {"configurations": {"one": content}, "label_manager": "LabelManager"}
    check_patch(Teacher(network, features=False, logits=True), Experiment(plans, "one", dataset), patch)


@pytest.mark.parametrize(
    ("make", "name"), [(primus, "dynamic_network_architectures.Primus"), (mednext, "monai.MedNeXt")]
)
def test_a_patch_that_the_network_does_not_take_is_refused(make, name):
    network = make()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    check(network, OWN)
    own = r"give the student's plans the teacher's patch_size, \[16, 16, 24\]$"
    with pytest.raises(ValueError, match=rf"^the teacher's network, {name}, does not take .* \[16, 18, 25\]: {own}"):
        check(network, [16, 18, 25])
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_the_positions_of_a_transformer_are_those_of_its_own_patch():
    with pytest.raises(ValueError, match=r"does not take patches of the student's size \[16, 24, 24\]"):
        check(primus(), [16, 24, 24])


def test_a_mednext_takes_patches_of_other_sizes_that_its_strides_divide():
    check(mednext(), [32, 16, 8])


def test_the_strides_of_encoder_stages_divide_the_patch():
    check(unet(), [16, 12], own=[8, 8])
    with pytest.raises(ValueError, match=r"patch size \[16, 14\] cannot be divided by the teacher's strides \[4, 4\]"):
        check(unet(), [16, 14], own=[8, 8])


def test_a_network_that_cannot_compute_without_memory_is_not_refused():
    class Unknown(nn.Module):
        def forward(self, images):
            return images * float(images.sum())  # which no tensor of the meta device has

    check(Unknown(), [8, 8, 8])
