"""A network in ONNX gives PyTorch's logits on every size that its axes allow."""

import numpy as np
import pytest
import torch

from nnunet_kd.deploy import onnx_network
from nnunet_kd.deploy.onnx_network import check_network, export_network


@pytest.mark.slow
def test_a_residual_encoder_has_dynamic_axes_too(tmp_path):
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    norm = {"norm_op": torch.nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": torch.nn.LeakyReLU}
    widths, strides = [4, 8, 16], [[1, 1], [2, 2], [2, 2]]
    network = ResidualEncoderUNet(
        2, 3, widths, torch.nn.Conv2d, 3, strides, [1, 2, 2], 3, [1, 1], conv_bias=True, **norm
    )
    path = tmp_path / "network.onnx"
    assert export_network(network.eval(), 2, [16, 24], [4, 4], path) == [4, 4]
    assert check_network(network, path, 2, [16, 24], [4, 4], "fp32") < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_whose_logits_are_not_finite_is_refused(tmp_path, monkeypatch, value):
    network, path = torch.nn.Conv2d(2, 3, 1).eval(), tmp_path / "network.onnx"
    outputs = lambda image: np.full((len(image), 3, *image.shape[2:]), value, np.float32)  # noqa: E731
    monkeypatch.setattr(onnx_network, "open_engine", lambda *_, **__: outputs)
    with pytest.raises(ValueError, match=r"network\.onnx gives logits that are not finite"):
        check_network(network, path, 2, [16, 24], None, "fp16")


def test_a_network_that_needs_its_patch_size_keeps_it(tmp_path):
    class OneSize(torch.nn.Conv2d):
        def forward(self, image):
            return super().forward(image) + torch.arange(24.0).expand(16, 24)

    network, path = OneSize(2, 3, 3, padding=1).eval(), tmp_path / "network.onnx"
    assert export_network(network, 2, [16, 24], [4, 4], path) is None
    assert check_network(network, path, 2, [16, 24], None, "fp32") < 1e-5


KD_SAM = {"image_size": 64, "blocks": (1, 1, 1, 1), "embedding_channels": 32, "mlp_dim": 64, "num_heads": 4}
DMIF = {"image_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "global_attention": (1,)}
OURS = {
    "kd_sam.KDSAM": {**KD_SAM, "mask_channels": 4},
    "brainseg_dmif.BrainSegDMIF": {**DMIF, "window_size": 3, "out_channels": 32},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_networks_of_slices_are_exported(tmp_path, name):
    """They take any batch but only the patch size, which is all that the sliding window needs."""
    import pydoc

    torch.manual_seed(0)
    network = pydoc.locate(f"nnunet_kd.networks.{name}")(2, 3, **OURS[name]).eval()
    path = tmp_path / "network.onnx"
    assert export_network(network, 2, [32, 48], [16, 16], path) is None
    assert check_network(network, path, 2, [32, 48], None, "fp32") < 1e-4
