"""Conversion, averaging and logging of the values of training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_kd.training.faults import SKIPPED

SEGMENTATION = "segmentation"  # nnU-Net's own loss


def as_numbers(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert the scalars of one step to numbers, in one transfer from the device."""
    numbers = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, numbers.cpu().numpy(), strict=True))


def means(outputs: list[dict[str, Any]], is_ddp: bool) -> Mapping[str, float]:
    """Average every value over the steps of an epoch and over the processes, ignoring values that are not finite."""
    here = {name: _finite_mean([output[name] for output in outputs]) for name in outputs[0]}
    if not is_ddp:
        return here
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, here)
    return {name: _finite_mean([process[name] for process in gathered]) for name in here}


def with_finite_loss(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the losses of an epoch for nnU-Net's log, with the mean in place of losses that are not finite."""
    mean = _finite_mean([output["loss"] for output in outputs])
    return [{"loss": output["loss"] if np.isfinite(output["loss"]) else mean} for output in outputs]


def _finite_mean(values: list[Any]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def log_terms(
    logger: Any,
    epoch: int,
    names: Sequence[str],
    outputs: list[dict[str, Any]],
    weights: Mapping[str, float],
    is_ddp: bool,
) -> list[str]:
    """Log the mean of every term over an epoch, NaN for a term that was not computed.

    Args:
        logger: nnU-Net's logger.
        epoch: The epoch, counted from 0.
        names: The names of the terms in the log.
        outputs: The values of every step of the epoch.
        weights: Term -> its weight in this epoch.
        is_ddp: Whether several processes train together.

    Returns:
        The lines for the log file.
    """
    lines = []
    epoch_means = means(outputs, is_ddp)
    skipped = round(epoch_means[SKIPPED] * len(outputs))
    logger.log(SKIPPED, skipped, epoch)
    if skipped:
        lines.append(f"skipped {skipped} of {len(outputs)} steps: their gradients were not finite")
    for name in names:
        logger.log(name, epoch_means.get(name, float("nan")), epoch)
    values = [f"{name} {epoch_means[name]:.4g}" for name in names if name in epoch_means]
    return [*lines, ", ".join([*values, *(f"weight of {name} {weight:.3g}" for name, weight in weights.items())])]
