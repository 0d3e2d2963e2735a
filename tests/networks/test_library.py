"""Networks of MONAI and segmentation-models-pytorch as networks of plans."""

import sys

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_kd.deploy.onnx_network import check_network, export_network
from nnunet_kd.evaluation.cost import network_cost
from nnunet_kd.networks.library import LibraryNetwork
from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.nnunet.networks_of_plans import NETWORKS

SMALL = {
    "monai.UNet": {"channels": [4, 8, 16], "num_res_units": 1},
    "monai.AttentionUnet": {"channels": [4, 8, 16]},
    "monai.BasicUNetPlusPlus": {"features": [4, 4, 8, 8, 16, 4]},
    "monai.MedNeXt": {"init_filters": 4, "blocks_down": [1, 2], "blocks_up": [1, 1], "encoder_expansion_ratio": 2}
    | {"decoder_expansion_ratio": 2},
    "monai.UNETR": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 3, "feature_size": 4},
    "monai.SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1]},
    "smp.MAnet": {"encoder_name": "resnet18", "decoder_channels": [32, 16, 16, 8, 8]},
    "smp.Linknet": {"encoder_name": "resnet18"},
}
BOTH = [(name, dim) for name in SMALL for dim in (2, 3) if dim == 2 or name.startswith("monai")]
PATCH = {2: [64, 96], 3: [32, 32, 64]}
MODULES = {"monai": "monai.networks.nets", "smp": "segmentation_models_pytorch"}


def library_of(name):
    """Return the module that holds a network, or skip the test without it."""
    return pytest.importorskip(MODULES[name.partition(".")[0]], reason="needs pip install '.[smp]'")


def small(name, dim=2, **options):
    library_of(name)
    torch.manual_seed(0)
    keywords = {**NETWORKS[name].keywords_of(f"torch.nn.modules.conv.Conv{dim}d", PATCH[dim]), **SMALL[name]}
    return LibraryNetwork(2, 3, conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dim], **keywords, **options)


def test_every_network_of_a_library_can_be_planned():
    assert [*SMALL] == [name for name in NETWORKS if "." in name]


@pytest.mark.parametrize(("name", "dim"), BOTH)
def test_logits_are_those_of_the_library(name, dim):
    network = small(name, dim).eval()
    torch.manual_seed(0)
    theirs = {"in_channels": 2, **SMALL[name]}
    theirs |= {"classes": 3, "encoder_weights": None} if name.startswith("smp") else {"out_channels": 3}
    theirs |= {"spatial_dims": dim} if name.startswith("monai") else {}
    theirs |= {"img_size": PATCH[dim]} if name == "monai.UNETR" else {}
    theirs |= {"strides": [2, 2]} if "channels" in theirs else {}
    planned = NETWORKS[name].keywords if name == "monai.MedNeXt" else {}
    theirs = {key: value for key, value in planned.items() if key != "network"} | theirs
    reference = getattr(library_of(name), name.partition(".")[2])(**theirs).eval()
    images = torch.randn(1, 2, *PATCH[dim])
    with torch.no_grad():
        expected = reference(images)
        expected = expected[0] if isinstance(expected, list) else expected
        logits = network(images)
        assert torch.equal(logits, expected) and logits.shape == (1, 3, *PATCH[dim])
        network.decoder.deep_supervision = True  # as nnU-Net switches it
        full, quarter = network(images)
    assert torch.equal(full, expected) and quarter.shape[2:] == tuple(side // 4 for side in PATCH[dim])


@pytest.mark.parametrize("name", SMALL)
def test_plans_build_it_and_costs_are_counted_without_memory(name):
    library_of(name)
    entry = NETWORKS[name]
    arguments = {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        **entry.keywords_of("torch.nn.modules.conv.Conv2d", [64, 64]),
    }
    with torch.device("meta"):
        network = get_network_from_plans(
            entry.class_name, arguments, ["conv_op"], 2, 3, allow_init=False, deep_supervision=True
        )
    assert all(parameter.is_meta for parameter in network.parameters())
    cost = network_cost(network, 2, [64, 64])
    assert cost.parameters > 2e6 and cost.flops > 1e8


@pytest.mark.parametrize(
    ("name", "millions"), [("monai.UNETR", 92.8), ("monai.SwinUNETR", 62.2), ("monai.MedNeXt", 10.5)]
)
def test_sizes_are_those_of_their_papers(name, millions):
    """92.58 M, 61.98 M and 10.5 M, for a few more or fewer channels and classes."""
    arguments = NETWORKS[name].keywords_of("torch.nn.modules.conv.Conv3d", [96, 96, 96])
    with torch.device("meta"):
        network = LibraryNetwork(1, 14, conv_op=nn.Conv3d, **arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [("monai.UNet", 3), ("monai.SwinUNETR", 2), ("smp.Linknet", 2)])
def test_onnx(tmp_path, name, dim):
    network, path = small(name, dim).eval(), tmp_path / "network.onnx"
    assert export_network(network, 2, PATCH[dim], [16] * dim, path) is None
    assert check_network(network, path, 2, PATCH[dim], None, "fp32") < 1e-4


def test_its_features_cannot_be_distilled():
    with pytest.raises(NotImplementedError, match="LibraryNetwork has no encoder that lists output_channels"):
        encoder_stages(small("monai.UNet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "monai.VNet"}, "there is no network 'monai.VNet': choose one of monai.UNet, "),
        ({"network": "os.system"}, "there is no network 'os.system'"),
        ({"network": "smp.Linknet", "conv_op": nn.Conv3d}, "smp.Linknet segments slices"),
        ({"strides": [[1, 1], [2, 2]]}, r"the strides of monai.UNet must be \[\[1, 1\], \[4, 4\], \[4, 4\]\]"),
        ({"network": "monai.UNETR"}, "monai.UNETR needs patch_size, the size of its images"),
        ({"depth": 3}, "monai.UNet has no option 'depth', or gets it from nnU-Net"),
        ({"in_channels": 3}, "monai.UNet has no option 'in_channels', or gets it from nnU-Net"),
    ],
)
def test_errors(changes, message):
    options = {"network": "monai.UNet", "channels": [4, 8]} if "network" not in changes else {}
    with pytest.raises(ValueError, match=message):
        LibraryNetwork(2, 3, **{**options, **changes})


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match="smp.Linknet needs a package that is missing here: pip install 'nnunet_kd"):
        LibraryNetwork(2, 3, network="smp.Linknet")


def test_a_library_that_is_too_old_is_named(monkeypatch):
    monkeypatch.delattr("monai.networks.nets.MedNeXt")
    with pytest.raises(ImportError, match="monai.MedNeXt needs a newer version of its package: pip install -U 'monai'"):
        LibraryNetwork(2, 3, network="monai.MedNeXt")
