"""Ending a training that no longer improves, and validating the best epoch's weights.

Whether a training ends depends only on nnU-Net's log, which every checkpoint keeps, so a resumed training ends in the
same epoch as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.training.interruption import BEST


class EndOfTrainingError(Exception):
    """Ends nnU-Net's loop over the epochs; not an error."""


def best_epoch(dice: Sequence[float]) -> int:
    """Return the epoch whose weights nnU-Net keeps as the best: the first with the highest value.

    Args:
        dice: nnU-Net's EMA pseudo Dice of every epoch so far, at least one.
    """
    best = 0
    for epoch, value in enumerate(dice):
        if value > dice[best]:
            best = epoch
    return best


def stops_after(dice: Sequence[float], patience: int | None) -> bool:
    """Return whether the training ends: the best epoch lies ``patience`` epochs back.

    Args:
        dice: nnU-Net's EMA pseudo Dice of every epoch so far.
        patience: The number of epochs without improvement; ``None`` never ends a training.
    """
    return bool(patience is not None and dice and len(dice) - 1 - best_epoch(dice) >= patience)


@contextmanager
def best_weights(trainer: Any) -> Iterator[None]:
    """Load the weights of ``checkpoint_best.pth`` into the evaluated network, and restore its own afterwards.

    Without the file, as after ``--disable_checkpointing``, the network keeps its weights and the log says so.
    """
    path = Path(trainer.output_folder) / BEST
    if not path.is_file():
        trainer.print_to_log_file(f"final validation of the last epoch: {path} is missing")
        yield
        return
    network = trainer.trained().evaluated
    own = {name: value.clone() for name, value in network.state_dict().items()}
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    network.load_state_dict(saved["network_weights"])
    trainer.print_to_log_file(f"final validation of {BEST}, the weights after epoch {saved['current_epoch'] - 1}")
    try:
        yield
    finally:
        network.load_state_dict(own)
