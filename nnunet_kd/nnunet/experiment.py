"""What one training belongs to, its trainer class and its network, as nnU-Net finds and builds them.

Importing this file imports nnU-Net, which takes about ten seconds: commands import it when they run.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.nnunet.checkpoint import TRUST_MODEL
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.nnunet.trust.architectures import check_networks


@dataclass(frozen=True)
class Experiment:
    """The plans, the configuration and the data set that a training of a student or a teacher belongs to."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]

    @classmethod
    def open(
        cls,
        path: Path,
        configuration: str | None,
        whose: str = "",
        trust: bool = False,
        remedy: str = TRUST_MODEL,
    ) -> Experiment:
        """Read plans and the ``dataset.json`` beside them, and check what nnU-Net would build from them.

        Args:
            path: The plans: ``plans.json`` of results, or ``PLANS.json`` of a preprocessed data set.
            configuration: Which one is trained; ``None``: any of them, as where plans are rewritten as a whole. The
                experiment is that of the first one then, and the networks of all are checked.
            whose: Whose plans they are, for messages: ``"the teacher's "``.
            trust: Do not check the networks: the plans may name any, or nothing is built from them.
            remedy: What to do where plans with an unknown network are trusted; a sentence.

        Raises:
            FileNotFoundError: Where one of the files is missing.
            ValueError: For files that cannot be read, a configuration that is not there, and a network that could run
                code or that no computer can hold.
        """
        plans = read_plans(path, whose)
        there = plans["configurations"]
        if configuration not in (None, *there):
            raise ValueError(f"{whose}{path} has no configuration {configuration}, only {', '.join(there)}")
        dataset_json = read_dataset_json(path.with_name("dataset.json"), whose)
        if not trust:
            check_networks(plans, path, remedy, configuration)
        return cls(plans, next(iter(there), "") if configuration is None else configuration, dataset_json)

    @classmethod
    def of_results(cls, folder: Path, trust: bool = False) -> Experiment:
        """Open the experiment of a results folder, ``TRAINER__PLANS__CONFIGURATION``.

        Args:
            folder: The folder, which holds ``plans.json`` and ``dataset.json``.
            trust: As for :meth:`open`.

        Raises:
            FileNotFoundError: As :meth:`open`.
            ValueError: As :meth:`open`.
        """
        return cls.open(folder / "plans.json", folder.name.split("__")[-1], trust=trust)


def find_trainer(name: str) -> Any:
    """Find a trainer class by its name where nnU-Net looks for it, without what nnU-Net prints.

    Raises:
        ValueError: Where there is none.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):  # the latter where the name is of something else
        raise ValueError(f"nnU-Net finds no trainer {str(name)[:100]}") from None


def build_network(trainer: Any, experiment: Experiment) -> nn.Module:
    """Build the network of a trainer class from plans, without deep supervision."""
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
