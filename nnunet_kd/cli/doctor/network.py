"""Check that a network can be built from plans and takes a patch, without allocating its memory."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_kd.networks.stages import has_encoder_stages
from nnunet_kd.nnunet.error_reasons import first_line
from nnunet_kd.nnunet.experiment import Experiment, build_network


def built_network(trainer: type[Any], experiment: Experiment, path: Path) -> nn.Module:
    """Build the network of a trainer class from plans, on the meta device if possible.

    A U-Net also receives a batch of empty patches.

    Args:
        trainer: The trainer class of the student.
        experiment: The experiment of the student.
        path: The file of its plans, for messages.

    Raises:
        ValueError: If the network cannot be built or cannot take its patch.
        ImportError: If a package is missing; the message has the command that installs it.
    """
    where = f"the network that {path} describes for {experiment.configuration}"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            network = _build(trainer, experiment)
        except ImportError:
            raise
        except Exception as error:  # any network can fail in its own way on unknown keywords
            raise ValueError(f"{where} cannot be built: {first_line(error)}") from error
        if has_encoder_stages(network) and all(parameter.is_meta for parameter in network.parameters()):
            plans = PlansManager(experiment.plans)
            patch = list(plans.get_configuration(experiment.configuration).patch_size)
            channels = determine_num_input_channels(plans, experiment.configuration, experiment.dataset_json)
            try:
                with torch.no_grad():
                    network(torch.empty(2, channels, *patch, device="meta"))
            except Exception as error:
                raise ValueError(f"{where} cannot take its patch of {patch} voxels: {first_line(error)}") from error
    return network


def _build(trainer: type[Any], experiment: Experiment) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_network(trainer, experiment)
    except ImportError:
        raise
    except Exception:  # some networks compute with their weights during construction
        return build_network(trainer, experiment)
