"""Untrusted plans build only known networks and layers, not much larger than their weights, and run nothing else."""

import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.evaluation.measure import peak_memory, start_of_peak
from nnunet_kd.nnunet.networks_of_plans import NETWORKS
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.trust.architectures import check_networks, load_network

PATH = Path("plans.json")
ARGUMENTS = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
LAYERS = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def plans_of(name=PLAIN, layers=LAYERS, **changes):
    architecture = {
        "network_class_name": name,
        "arch_kwargs": {**deepcopy(ARGUMENTS), **changes},
        "_kw_requires_import": layers,
    }
    configurations = {"2d": {"patch_size": [32, 32], "architecture": architecture}, "child": {"inherits_from": "2d"}}
    return {"plans_name": "p", "dataset_name": "Dataset001_X", "configurations": configurations}


def network(plans, configuration="2d"):
    """Build the network as stock nnU-Net does."""
    settings = PlansManager(plans).get_configuration(configuration)
    return get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        1,
        2,
        deep_supervision=False,
    )


def refused(plans, message, configuration=None):
    with pytest.raises(ValueError, match=message) as caught:
        check_networks(plans, PATH, "The remedy", configuration)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("plans.json ")


def appears(path, seconds=20):
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return path.exists()


def malicious(file):
    return plans_of(nonlin="subprocess.Popen", nonlin_kwargs={"args": ["touch", str(file)]})


def test_a_program_named_in_plans_is_not_started(tmp_path):
    """Stock nnU-Net would start it."""
    ran, safe = tmp_path / "stock", tmp_path / "ours"
    with pytest.raises(TypeError, match=r"subprocess\.Popen is not a Module subclass"):
        network(malicious(ran))
    assert appears(ran)
    for configuration in ("2d", "child", None):
        refused(malicious(safe), "which is not part of torch.nn, .* and could run code. The remedy", configuration)
    time.sleep(0.5)
    assert not safe.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.exec",
        "torch.os.system",
        "torch.hub.load",
        "torch.nnevil.Net",
        "torch.nn",
        "nnunet_kd.cli.main",
        "nnunet_kd.networks.__init__.os",
        "nnunet_kd.networks.dra_unet.DRAUNet.__init__",
        "torch.nn.modules.module.__builtins__",
        "PlainConvUNet",
        "torch.nn..Conv2d",
        "torch.nn.Conv2d\nos.system",
        "",
        7,
        ["os.system"],
    ],
)
def test_names_outside_the_packages_are_refused(name):
    refused(
        plans_of(name), "which is not part of torch.nn, dynamic_network_architectures, nnunetv2 or nnunet_kd.networks"
    )
    refused(plans_of(norm_op=name), "which is not part of torch.nn")


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.functional.relu",
        "torch.nn.modules.module.torch.os.system",
        "torch.nn.Parameter",
        "torch.nn.NoSuchLayer",
        "nnunetv2.utilities.find_class_by_name.importlib.import_module",
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer",
        "dynamic_network_architectures.architectures.moved.np",
    ],
)
def test_objects_that_are_not_networks_or_layers_are_refused(name):
    refused(plans_of(name), "which is not a network or layer of that package")
    refused(plans_of(nonlin=name), "which is not a network or layer of that package")


def test_other_packages_are_not_even_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "runs_when_imported.py").write_text("raise SystemExit('it ran')")
    refused(plans_of("runs_when_imported.Network"), "could run code")
    refused(plans_of(conv_op="runs_when_imported.Layer"), "could run code")
    assert "runs_when_imported" not in sys.modules
    with pytest.raises(BaseException, match="it ran"):  # nnU-Net imports it
        network(plans_of("runs_when_imported.Network"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {}}, "'_kw_requires_import' is missing"),
        ({"architecture": None}, "contains plans that nnU-Net cannot use"),
        ({"inherits_from": "nothing"}, "The configuration nothing does not exist"),
        ({"inherits_from": "child"}, "Circular dependency"),
        ({"patch_size": [2**10, 2**11, 2**12]}, "the patch_size of 2d must be"),
        ({"patch_size": [-1, 5]}, "the patch_size of 2d must be"),
        ({"patch_size": ["a"]}, "the patch_size of 2d must be"),
    ],
)
def test_invalid_configurations_are_refused(change, message):
    plans = plans_of()
    plans["configurations"]["2d"].update(change)
    refused(plans, message)


def test_a_missing_layer_is_refused():
    refused(plans_of(layers=["act"]), "contains plans that nnU-Net cannot use: 'act' is missing")


def old_plans(**changes):
    """Before nnU-Net 2.4."""
    content = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "num_pool_per_axis": [2, 2],
        "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
        "conv_kernel_sizes": [[3, 3], [3, 3], [3, 3]],
        "patch_size": [32, 32],
        **changes,
    }
    return {"plans_name": "p", "dataset_name": "d", "configurations": {"2d": content}}


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_older_nnunets(name):
    plans = old_plans(UNet_class_name=name)
    check_networks(plans, PATH, "")
    weights = network(plans).state_dict()
    assert load_network(partial(network, plans), weights, PATH).state_dict().keys() == weights.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"UNet_class_name": "subprocess.Popen"}, "Unknown architecture subprocess.Popen"),
        ({"UNet_base_num_features": 10**9}, "UNet_base_num_features is 1000000000"),
        ({"n_conv_per_stage_encoder": [1] * 10**5}, "n_conv_per_stage_encoder has 100000 entries"),
        ({"conv_kernel_sizes": None, "patch_size": None}, "contains plans that nnU-Net cannot use"),
    ],
)
def test_malicious_plans_of_older_nnunets(changes, message):
    refused(old_plans(**changes), message)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_this_package(name):
    plans = student_plans(plans_of(), 1, network=name)
    check_networks(plans, PATH, "")


def test_residual_encoders_and_a_name_nnunet_has_moved():
    arguments = deepcopy(ARGUMENTS)
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    for module in ("unet", "residual_unet"):
        plans = plans_of(f"dynamic_network_architectures.architectures.{module}.ResidualEncoderUNet")
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = arguments
        check_networks(plans, PATH, "")


# ---- sizes

HUGE = [
    {"n_stages": 10**9},
    {"features_per_stage": 10**9},
    {"features_per_stage": [10**9] * 3},
    {"n_conv_per_stage": 10**9},
    {"n_conv_per_stage": [10**9, 1, 1]},
    {"kernel_sizes": [[10**9, 3], [3, 3], [3, 3]]},
    {"strides": [[1, 1]] * 10**5},
    {"anything": {"nested": [10**9]}},
]


@pytest.mark.parametrize("change", HUGE, ids=lambda change: next(iter(change)))
def test_networks_that_are_too_large_are_refused(change):
    refused(plans_of(**change), "defines a network that is too large for any computer: ")


LARGE = [
    {"n_stages": 1000},
    {"n_stages": 1000, "kernel_sizes": 3, "strides": 2, "n_conv_per_stage": 1, "features_per_stage": 8},
    {"features_per_stage": [4, 10**5, 10**6]},
    {"features_per_stage": [10**6] * 3},
    {"n_conv_per_stage": [1000, 1000, 1000]},
    {"n_conv_per_stage": 1000, "features_per_stage": 10**4},
    {"kernel_sizes": [[10**4 + 1, 10**4 + 1], [3, 3], [3, 3]]},
    {"features_per_stage": [4, 8, 9]},
]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
@pytest.mark.parametrize("change", LARGE, ids=str)
def test_networks_larger_than_their_weights_are_not_built(change):
    plans = plans_of(**change)
    check_networks(plans, PATH, "")
    weights = network(plans_of()).state_dict()
    before, start = start_of_peak("cpu"), time.monotonic()
    with pytest.raises(ValueError, match=r"do not belong to the plans\.json|cannot be built"):
        load_network(partial(network, plans), weights, PATH)
    assert peak_memory("cpu") - before < 2**29 and time.monotonic() - start < 60


class ComputesWithItsWeights(nn.Module):
    """A network that cannot be built on the meta device."""

    def __init__(self, width=4, layers=1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.scale = self.layers[0].weight.sum().item()


def test_networks_that_compute_in_their_constructor():
    weights = ComputesWithItsWeights().state_dict()
    loaded = load_network(ComputesWithItsWeights, weights, PATH)
    torch.testing.assert_close(loaded.state_dict(), weights)
    for large in ({"width": 10**6}, {"layers": 10**6}):
        with pytest.raises(ValueError, match="do not belong"):
            load_network(partial(ComputesWithItsWeights, **large), weights, PATH)


def test_invalid_weights_are_refused():
    for weights in (None, [], {"a": 1}, {"a": torch.zeros(1), 7: "x"}):
        with pytest.raises(ValueError, match=r"c\.pth does not contain the weights of a network"):
            load_network(nn.Identity, weights, Path("c.pth"))
    small = network(plans_of()).state_dict()
    spread = {name: torch.zeros(1).expand(weight.shape) for name, weight in small.items()}
    grown = {name: torch.zeros(1).expand(*weight.shape[:-1], 10**9) for name, weight in small.items()}
    load_network(partial(network, plans_of()), spread, PATH)
    for weights in (grown, {**small, 3: torch.zeros(1)}, {**small, "extra": torch.zeros(2)}, {}):
        with pytest.raises(ValueError, match="do not belong to the plans"):
            load_network(partial(network, plans_of()), weights, PATH)


def test_unknown_keywords_of_a_network_are_refused():
    weights = network(plans_of()).state_dict()
    for change in ({"colour": "red"}, {"conv_op": None}, {"n_conv_per_stage": "three"}, {"norm_op_kwargs": {"x": 1}}):
        with pytest.raises(ValueError, match=r"the network of plans\.json cannot be built: ") as caught:
            load_network(partial(network, plans_of(**change)), weights, PATH)
        assert "\n" not in str(caught.value)


def test_a_trusted_network_is_built_unchecked():
    replaced = partial(ComputesWithItsWeights, 4)

    def build():
        ComputesWithItsWeights(2000, 5)
        return replaced()

    weights = replaced().state_dict()
    with pytest.raises(ValueError, match="do not belong"):
        load_network(build, weights, PATH)
    load_network(build, weights, PATH, trust=True)
    with pytest.raises(ValueError, match="do not belong"):
        load_network(build, {}, PATH, trust=True)


def test_loaded_networks_are_unchanged():
    first = network(plans_of()).eval()
    again = load_network(partial(network, plans_of()), first.state_dict(), PATH).eval()
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(again(image), first(image), rtol=0, atol=0)
    assert isinstance(again, PlainConvUNet)
