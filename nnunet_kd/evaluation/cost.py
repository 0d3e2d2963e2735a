"""Count the parameters, FLOPs and activation memory of the networks in a plans file, without running them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """The cost of a configuration's network.

    Attributes:
        parameters: The number of parameters.
        flops: The floating point operations of the convolutions and matrix products in one forward pass over one patch,
            where a multiply-add counts as two. Elementwise operations, such as the recurrence of a selective scan, are
            not counted.
        activation_bytes: The memory that a training step on one patch keeps for the backward pass, in float32 and with
            deep supervision.
    """

    parameters: int
    flops: int
    activation_bytes: int


def network_cost(network: nn.Module, channels: int, patch_size: list[int]) -> Cost:
    """Count the cost of a network on PyTorch's meta device.

    Args:
        network: A network that was built under ``torch.device("meta")``.
        channels: The number of input channels.
        patch_size: The patch size in voxels, in nnU-Net's axis order.
    """
    patch = torch.empty(1, channels, *patch_size, device="meta")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:  # the counter hooks every tensor that requires a gradient, even under no_grad
        parameter.requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(patch)
    for parameter in trained:
        parameter.requires_grad_(True)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # a reference, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(patch)
    activations = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops(), activations)


def configuration_cost(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], built: nn.Module | None = None
) -> Cost:
    """Count the cost of the network that a configuration of the plans defines, or of the one that a trainer has built.

    Args:
        plans: The plans.
        configuration: The configuration.
        dataset_json: The ``dataset.json``.
        built: The network in use, if there is one. It is counted instead if its weights are not those of the plans'
            network, because trainers such as nnU-Net's for Primus build another one.
    """
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, settings, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    patch_size = list(settings.patch_size)
    try:
        network = _planned_network(settings, channels, heads)
    except Exception:  # a network without deep supervision, or that computes with weights which have no memory here
        if built is None:
            raise
        return network_cost(_without_memory(built), channels, patch_size)
    if built is not None and _shapes(built) != _shapes(network):
        network = _without_memory(built)
    return network_cost(network, channels, patch_size)


def _planned_network(settings: Any, channels: int, heads: int) -> nn.Module:
    """Build the network of a configuration, with deep supervision and without memory."""
    with torch.device("meta"):
        network: nn.Module = get_network_from_plans(
            settings.network_arch_class_name,
            settings.network_arch_init_kwargs,
            settings.network_arch_init_kwargs_req_import,
            channels,
            heads,
            allow_init=False,
            deep_supervision=True,
        )
    return network


def _shapes(network: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in network.parameters()]


def _without_memory(network: nn.Module) -> nn.Module:
    """Copy a network to PyTorch's meta device."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return deepcopy(network, memo)


def cost_table(teacher: dict[str, Any], student: dict[str, Any], dataset_json: dict[str, Any]) -> str:
    """Compare the costs of teacher and student in a table with one line per configuration and quantity."""
    lines = [f"{'configuration':<20} {'':<28} {'teacher':>10} {'student':>10} {'ratio':>6}"]
    for configuration in student["configurations"]:
        before = configuration_cost(teacher, configuration, dataset_json)
        after = configuration_cost(student, configuration, dataset_json)
        for label, unit, a, b in (
            ("parameters (M)", 1e6, before.parameters, after.parameters),
            ("GFLOPs per patch", 1e9, before.flops, after.flops),
            ("activations per patch (MiB)", 2**20, before.activation_bytes, after.activation_bytes),
        ):
            lines.append(f"{configuration:<20} {label:<28} {a / unit:>10.3f} {b / unit:>10.3f} {a / b:>6.1f}")
    return "\n".join(lines)
