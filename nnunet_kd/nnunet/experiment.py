"""What one training belongs to, its trainer class and its network, as nnU-Net finds and builds them."""

from __future__ import annotations

import contextlib
import inspect
import io
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


@dataclass(frozen=True)
class Experiment:
    """What a training belongs to, of a student or of a teacher."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]


def find_trainer(name: str) -> Any:
    """A trainer class by its name, where nnU-Net looks for it; without its talk.

    Raises:
        ValueError: Where there is none.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):  # the latter where the name is of something else
        raise ValueError(f"nnU-Net finds no trainer {str(name)[:100]}") from None


def build_network(trainer: Any, experiment: Experiment) -> nn.Module:
    """The network a trainer class builds from plans, without deep supervision."""
    plans = PlansManager(experiment.plans)
    configuration = plans.get_configuration(experiment.configuration)
    heads = plans.get_label_manager(experiment.dataset_json).num_segmentation_heads
    channels = determine_num_input_channels(plans, configuration, experiment.dataset_json)
    build = trainer.build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        network = build(plans, configuration, channels, heads, enable_deep_supervision=False)
    else:  # trainers written for nnU-Net before 2.6
        network = build(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            heads,
            enable_deep_supervision=False,
        )
    assert isinstance(network, nn.Module)
    return network
