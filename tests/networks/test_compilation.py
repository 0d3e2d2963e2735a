"""Every network is captured as one graph per mode without a break, and never captured again."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from nnunet_kd.networks.dra_unet import DRAUNet
from nnunet_kd.networks.kd_sam import KDSAM
from nnunet_kd.networks.mobile_unet import MobileUNet
from nnunet_kd.networks.vm_unet import VMUNet
from tests.networks.small_brainseg_dmif import small
from tests.small_networks import unet

KD_SAM = {"image_size": 64, "blocks": (1, 1, 1, 1), "embedding_channels": 32, "mlp_dim": 64, "num_heads": 4}
VM_UNET = {"n_stages": 2, "features_per_stage": (8, 16), "depths": 1, "depths_decoder": 1, "deep_supervision": True}
NETWORKS = {  # network, channels
    "U-Net": (unet, 2),
    "DRA-UNet": (lambda: DRAUNet(2, 3, n_stages=3, features_per_stage=4, deep_supervision=True), 2),
    "Mobile U-Net": (lambda: MobileUNet(2, 3, 3, 4, nn.Conv2d, deep_supervision=True), 2),
    "VM-UNet": (lambda: VMUNet(2, 3, **VM_UNET), 2),
    "BrainSegDMIF": (small, 3),
    "KD-SAM": (lambda: KDSAM(3, 3, **KD_SAM, mask_channels=4), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph_per_mode(name):
    make, channels = NETWORKS[name]
    network, images = make(), torch.randn(2, channels, 32, 32)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(network, backend="eager")
    for training in (True, False, True, False):
        network.train(training)
        with torch.set_grad_enabled(training):
            compiled(images)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2
