"""The numbers that training steps leave for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_kd.training.faults import SKIPPED


def as_numbers(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scalars of one step, which leave the device in one transfer."""
    numbers = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, numbers.cpu().numpy(), strict=True))


def means(outputs: list[dict[str, Any]], is_ddp: bool) -> Mapping[str, float]:
    """Mean of every value over the steps of an epoch where it is finite, and over the processes."""
    here = {name: _finite_mean([output[name] for output in outputs]) for name in outputs[0]}
    if not is_ddp:
        return here
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, here)
    return {name: _finite_mean([process[name] for process in gathered]) for name in here}


def with_finite_loss(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The losses of an epoch for nnU-Net's log; steps without a finite one count as their mean."""
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
    """Log the mean of every term over an epoch; not a number where a term was not computed.

    Args:
        logger: nnU-Net's.
        epoch: Counted from 0.
        names: Names of the terms in the log.
        outputs: What the steps of the epoch left.
        weights: Term -> its weight in this epoch.
        is_ddp: Whether several processes train together.

    Returns:
        Lines for the log file.
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
