"""Checking, before a training starts, that a teacher's network takes patches of the student's size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.func import functional_call

from nnunet_kd.networks.pyramids import name_of
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.teacher import Teacher


def check_patch(teacher: Teacher, experiment: Experiment, patch: Sequence[int]) -> None:
    """Check that a teacher takes patches of the student's size.

    With encoder stages, the product of their strides has to divide the patch. A network without them, such as a
    transformer with an embedding of positions, computes an empty patch without memory or arithmetic, on PyTorch's meta
    device; if that cannot be done even with a patch of its own training, nothing is known and nothing is refused.

    Args:
        teacher: The teacher on the CPU.
        experiment: The teacher's experiment.
        patch: The size of the student's patches in voxels.

    Raises:
        ValueError: If the network does not take such patches.
    """
    own = list(experiment.patch_size)
    if teacher.stages is not None:
        coarsest = teacher.stages.strides[-1]
        if any(size % stride for size, stride in zip(patch, coarsest, strict=True)):
            raise ValueError(
                f"the student's patch size {list(patch)} cannot be divided by the teacher's strides {list(coarsest)}"
            )
    elif list(patch) != own:
        plans = PlansManager(experiment.plans)
        channels = determine_num_input_channels(plans, experiment.configuration, experiment.dataset_json)
        network: nn.Module = teacher.network
        if _takes(network, channels, own) and not _takes(network, channels, patch):
            raise ValueError(
                f"the teacher's network, {name_of(network)}, does not take patches of the student's size "
                f"{list(patch)}: give the student's plans the teacher's patch_size, {own}"
            )


@torch.no_grad()
def _takes(network: nn.Module, channels: int, patch: Sequence[int]) -> bool:
    """Return whether a network gives logits for all of an empty patch, with all tensors on the meta device."""
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    weights = {name: tensor.to("meta") for name, tensor in tensors}
    try:
        logits = functional_call(network, weights, (torch.empty(1, channels, *patch, device="meta"),))
    except Exception:  # any network can fail in its own way
        return False
    full = logits if isinstance(logits, Tensor) else logits[0]
    return list(full.shape[2:]) == list(patch)
