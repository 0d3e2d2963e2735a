"""Networks that nnU-Net has compiled: one graph, without a break, with the gradients of the eager network."""

import pytest
import torch
from torch._dynamo import OptimizedModule
from torch.utils._pytree import tree_leaves

from nnunet_kd.networks.vm_unet import VMUNet
from nnunet_kd.training.kd_sam.phases import DECODER
from tests.conftest import SHORT
from tests.gpu.agreement import error
from tests.gpu.compiling import describe_compilation, nnunet_compiles
from tests.gpu.place import exact_products
from tests.gpu.training import make
from tests.training import small_brainseg_dmif, small_kd_sam
from tests.training.methods import trainer_class
from tests.vm_unet_plans import plans_for as vm_unet

# name -> trainer, configuration, how to write the plans
STUDENTS = {
    "NoKD": ("NoKD", "3d_fullres", lambda workspace, _: workspace.plans(training=SHORT)),
    "DualSelfKD": ("DualSelfKD", "3d_fullres", lambda workspace, _: workspace.plans(training=SHORT)),
    "VM-UNet": ("DualSelfKD", "2d", lambda workspace, _: vm_unet(workspace)),
    "BrainSegDMIF": ("BrainSegDMIF", "2d", lambda workspace, _: small_brainseg_dmif.plans_for(workspace)),
    "KD-SAM's encoder": ("KDSAM", "2d", small_kd_sam.plans_for),
    "KD-SAM's decoder": ("KDSAM", "2d", small_kd_sam.plans_for),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_student(place, figures, workspace, sam, name):
    method, configuration, write_plans = STUDENTS[name]
    if name == "VM-UNet" and not VMUNet.compiles:
        pytest.skip("a VM-UNet with mamba-ssm's kernel is not compiled")
    trainer = make(place, trainer_class(method), write_plans(workspace, sam), workspace, configuration)
    with nnunet_compiles(place), exact_products():
        trainer.initialize()
        joint = trainer.trained()
        assert isinstance(trainer.network, OptimizedModule)
        if name.endswith("decoder"):
            joint.learns = DECODER
        joint.train()
        for module in joint.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = 0.0  # compiled networks draw other random numbers
        patch = trainer.configuration_manager.patch_size
        images = torch.randn(2, trainer.num_input_channels, *patch, generator=torch.Generator().manual_seed(0))
        images = images.to(place.device)
        expected, expected_gradients = forward_and_backward(joint, joint, images)
        outputs, gradients = forward_and_backward(joint, trainer.network, images)
        figures.update(describe_compilation())
    assert gradients.keys() == expected_gradients.keys()
    figures["output error"] = error(outputs, expected)
    figures["gradient error"] = error(list(gradients.values()), list(expected_gradients.values()))
    assert figures["output error"] < 1e-3 and figures["gradient error"] < 1e-3
    assert figures["graphs"] == 1 and figures["breaks"] == 0


def forward_and_backward(joint, network, images):
    """Return all outputs of a forward pass, and the gradients of the mean of their squares."""
    torch.manual_seed(0)
    outputs = [one for one in tree_leaves(network(images)) if isinstance(one, torch.Tensor)]
    sum(one.square().mean() for one in outputs).backward()
    gradients = {name: one.grad for name, one in joint.named_parameters() if one.grad is not None}
    joint.zero_grad(set_to_none=True)
    return outputs, gradients
