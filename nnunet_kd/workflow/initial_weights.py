"""Whether a student can start as its pruned teacher, which has to be the same network with larger widths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_kd.nnunet.checkpoint import read_checkpoint
from nnunet_kd.nnunet.experiment import Experiment, build_network
from nnunet_kd.pruning import other_layers
from nnunet_kd.teachers.find import TeacherFiles


def why_random(teacher: TeacherFiles, student: Experiment) -> str | None:
    """Say why a student cannot start as its pruned teacher; ``None`` if it can.

    The weights themselves tell, because trainers such as nnU-Net's for Primus build another network than the plans
    name.

    Args:
        teacher: The files of the fold from which the initial weights would come.
        student: The student's plans, configuration and data set; its trainer builds the network of these plans.

    Raises:
        ValueError: If the checkpoint of the teacher cannot be read or is not trusted.
    """
    configuration = teacher.experiment.configuration
    content = read_checkpoint(teacher.checkpoint, teacher.trust_checkpoint, teacher.remedy, configuration)
    weights = content["network_weights"]
    if not isinstance(weights, Mapping) or not all(isinstance(one, Tensor) for one in weights.values()):
        raise ValueError(f"{teacher.checkpoint} does not contain the weights of a network")
    with torch.device("meta"):
        network = build_network(nnUNetTrainer, student)
    return other_layers(weights, network.state_dict())
