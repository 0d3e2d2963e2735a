"""The experiment that a training belongs to, and its trainer class and network as nnU-Net finds and builds them.

Importing this file imports nnU-Net, which takes about ten seconds, so commands import it only when they run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.discovery import VARIABLE
from nnunet_kd.nnunet.checkpoint import TRUST_MODEL
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.nnunet.trust.architectures import check_networks


@dataclass(frozen=True)
class Experiment:
    """The plans, the configuration and the data set of a student's or a teacher's training."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]

    @property
    def label_manager(self) -> Any:
        """nnU-Net's manager of the labels or regions."""
        return PlansManager(self.plans).get_label_manager(self.dataset_json)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """The size of the training's patches in voxels, in nnU-Net's axis order."""
        return tuple(int(side) for side in PlansManager(self.plans).get_configuration(self.configuration).patch_size)

    @property
    def batch_size(self) -> int:
        """The number of patches of a batch."""
        return int(PlansManager(self.plans).get_configuration(self.configuration).batch_size)

    @classmethod
    def open(
        cls,
        path: Path,
        configuration: str | None,
        whose: str = "",
        trust: bool = False,
        remedy: str = TRUST_MODEL,
    ) -> Experiment:
        """Read the plans and the ``dataset.json`` beside them, and check the networks that nnU-Net would build.

        Args:
            path: The plans: ``plans.json`` of a results folder, or ``PLANS.json`` of a preprocessed data set.
            configuration: The configuration that is trained. With ``None``, as when a whole plans file is rewritten,
                the networks of all configurations are checked and the experiment gets the first configuration.
            whose: The owner of the plans, for messages: ``"the teacher's "``.
            trust: Whether to skip the check of the networks, because the plans are trusted or no network is built.
            remedy: What a person who trusts a plans file with an unknown network has to do; a sentence.

        Raises:
            FileNotFoundError: If one of the files is missing.
            ValueError: If a file cannot be read, the configuration does not exist, or a network could run code or does
                not fit into any computer's memory.
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
            folder: The results folder, which contains ``plans.json`` and ``dataset.json``.
            trust: See :meth:`open`.

        Raises:
            FileNotFoundError: See :meth:`open`.
            ValueError: See :meth:`open`.
        """
        return cls.open(folder / "plans.json", folder.name.split("__")[-1], trust=trust)


def find_trainer(name: str) -> Any:
    """Find a trainer class by name, in the folders that nnU-Net searches, and suppress nnU-Net's output.

    nnU-Net compares the paths of all imported modules in every search, so a class that was found once is kept.

    Raises:
        ValueError: If nnU-Net finds no trainer of this name.
    """
    return _found_trainer(str(name), os.environ.get(VARIABLE))


@functools.cache
def _found_trainer(name: str, folders: str | None) -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):  # TypeError if the name belongs to something else
        raise ValueError(f"nnU-Net finds no trainer {name[:100]}") from None


def build_network(trainer: Any, experiment: Experiment, *, more_channels: int = 0, more_heads: int = 0) -> nn.Module:
    """Build an experiment's network as its trainer class does, without deep supervision.

    Args:
        trainer: The trainer class.
        experiment: The experiment.
        more_channels: The number of input channels in addition to those of the images.
        more_heads: The number of outputs in addition to those of the labels or regions.
    """
    plans = PlansManager(experiment.plans)
    configuration = plans.get_configuration(experiment.configuration)
    heads = experiment.label_manager.num_segmentation_heads + more_heads
    channels = determine_num_input_channels(plans, configuration, experiment.dataset_json) + more_channels
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
