"""Learning rate schedules in place of nnU-Net's polynomial; nnU-Net calls ``step`` at the start of every epoch.

All but :class:`PlateauSchedule` depend on the epoch alone, so resuming needs no saved state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nnunet_kd.nnunet.settings import TrainingSettings


class EpochSchedule(ABC):
    """A learning rate that is a function of the epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._initial = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the learning rate of ``epoch``, counted from 0."""
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = self.rate(initial, epoch)

    @abstractmethod
    def rate(self, initial: float, epoch: int) -> float:
        """Return the learning rate of ``epoch``, counted from 0."""


class StepSchedule(EpochSchedule):
    """A learning rate that is multiplied by a factor at each milestone."""

    def __init__(self, optimizer: torch.optim.Optimizer, milestones: Sequence[int], factor: float) -> None:
        super().__init__(optimizer)
        self._milestones = list(milestones)
        self._factor = factor

    def rate(self, initial: float, epoch: int) -> float:
        """Return the initial rate times the factor for every milestone reached."""
        return initial * self._factor ** bisect_right(self._milestones, epoch)


class CosineSchedule(EpochSchedule):
    """A learning rate that falls along half a cosine to its least value in the last epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, num_epochs: int, least: float = 1e-5) -> None:
        super().__init__(optimizer)
        self._last = max(num_epochs - 1, 1)
        self._least = least

    def rate(self, initial: float, epoch: int) -> float:
        """Return the rate on the cosine, which never exceeds the initial one."""
        least = min(self._least, initial)
        return least + (initial - least) * (1 + math.cos(math.pi * min(epoch / self._last, 1))) / 2


class CosineWaves(EpochSchedule):
    """A learning rate that falls along half a cosine and rises again in as many epochs, like CosineAnnealingLR.

    In VM-UNet and DSVM-UNet it falls for 50 epochs and rises for 50, three times in 300 epochs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int, least: float = 1e-5) -> None:
        super().__init__(optimizer)
        self._epochs = epochs
        self._least = least

    def rate(self, initial: float, epoch: int) -> float:
        """Return the rate on the cosine, which never exceeds the initial one."""
        least = min(self._least, initial)
        return least + (initial - least) * (1 + math.cos(math.pi * epoch / self._epochs)) / 2


def adamw(network: nn.Module, initial_lr: float, num_epochs: int) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """Make AdamW and its cosine schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), initial_lr)
    return optimizer, CosineSchedule(optimizer, num_epochs)


class PlateauSchedule:
    """A learning rate that falls when the validation loss no longer does."""

    def __init__(self, optimizer: torch.optim.Optimizer, patience: int) -> None:
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=patience, threshold=0, threshold_mode="abs"
        )  # any lower loss is progress, negative ones included
        self.observe = self._plateau.step
        self.state_dict = self._plateau.state_dict

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a saved schedule, but keep the current patience."""
        self._plateau.load_state_dict({**state, "patience": self._plateau.patience})

    def step(self, _epoch: int) -> None:
        """Do nothing: nnU-Net calls this at the start of an epoch, the rate changes in ``observe``."""


def make_optimizer(
    training: TrainingSettings,
    network: nn.Module,
    initial_lr: float,
    num_epochs: int,
    usual: Callable[[], tuple[torch.optim.Optimizer, Any]],
) -> tuple[torch.optim.Optimizer, Any]:
    """Make the optimizer and the schedule that the settings ask for.

    Args:
        training: The settings.
        network: The network with all trained parameters.
        initial_lr: The learning rate of the first epoch.
        num_epochs: The number of epochs.
        usual: Makes nnU-Net's optimizer and schedule.
    """
    optimizer, schedule = usual() if training.optimizer is None else adamw(network, initial_lr, num_epochs)
    if training.lr_schedule == "plateau":
        schedule = PlateauSchedule(optimizer, training.plateau_patience)
    elif training.lr_schedule == "cosine":
        schedule = CosineWaves(optimizer, training.cosine_epochs)
    return optimizer, schedule
