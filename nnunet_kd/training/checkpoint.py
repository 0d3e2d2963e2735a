"""Checkpoints: what they hold in addition to nnU-Net's content, and how they are written and read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_kd.distillation.average import WeightAverage, averaged_tensors, load_tensors
from nnunet_kd.distillation.student import StudentWithAdapters
from nnunet_kd.storage.writing import replacing


def save_atomically(content: Any, path: str | Path) -> None:
    """Save like ``torch.save``, but never leave an incomplete file."""
    with replacing(Path(path)) as unfinished:
        torch.save(content, unfinished)


def plainly_laid_out(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make every weight contiguous; names that share a tensor, as many in nnU-Net do, still share it."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        key = (weight.data_ptr(), weight.shape)
        if key not in made:
            made[key] = weight.contiguous()
    return {name: made[weight.data_ptr(), weight.shape] for name, weight in weights.items()}


def stock_checkpoint(save: Callable[[Any], None]) -> dict[str, Any]:
    """Return nnU-Net's checkpoint, on the CPU.

    Args:
        save: nnU-Net's method that writes the checkpoint into a file.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    checkpoint: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=False)
    checkpoint["network_weights"] = plainly_laid_out(checkpoint["network_weights"])
    return checkpoint


def saved_state(joint: StudentWithAdapters) -> dict[str, Any]:
    """Return the state that nnU-Net does not save: the adapters and, if weights are averaged, the student's own.

    With an average nnU-Net saves the averaged weights, because predictions use them.
    """
    averaged = joint.average is not None
    return {
        "adapters": joint.adapters.state_dict(),
        "average": averaged_tensors(joint.student) if averaged else None,
        "average_shown": averaged,
    }


def check_resumable(saved: Any, path: str, places: list[Any], optimizer: str | None) -> None:
    """Check that a training can resume from a checkpoint.

    Args:
        saved: The state that this package added to the checkpoint; ``None`` if it added none.
        path: The checkpoint's path, for messages.
        places: The current value of :attr:`nnunet_kd.distillation.distiller.Distiller.places`.
        optimizer: The optimizer that the settings ask for now.

    Raises:
        ValueError: If the training began with another trainer, other terms or another optimizer.
    """
    if saved is None:
        raise ValueError(f"{path} was not written by a trainer of nnunet_kd: train without --c")
    if saved.get("terms", places) != places:
        before, now = (", ".join(name for name, _ in them) for them in (saved["terms"], places))
        raise ValueError(
            f"this training was begun with other terms or stages ({before or 'none'}) than nnunet_kd.method of the "
            f"plans has now ({now or 'none'}): restore nnunet_kd.method, or train from the start without --c"
        )
    begun = saved["record"].get("optimizer") if "record" in saved else optimizer
    if begun != optimizer:  # optimizers keep different states
        raise ValueError(
            f"this training was begun with {begun or 'SGD'}, but nnunet_kd.training of the plans now asks for "
            f"{optimizer or 'SGD'}: restore the optimizer, or train from the start without --c"
        )


def begin_average(trainer: Any) -> None:
    """Begin to average the weights, or stop averaging if the settings of a resumed training no longer ask for it.

    Args:
        trainer: The trainer before its first epoch, with its final initial weights.
    """
    joint = trainer.trained()
    if joint.average is None:
        return
    if trainer.preparation.settings.training.ema_decay is None:
        joint.average = None
        trainer.print_to_log_file(
            "weights are no longer averaged: resuming from the last step's weights, not the average"
        )
    elif trainer.current_epoch == 0:  # the weights may have changed since the average was made
        joint.average.restart()


def load_average(joint: StudentWithAdapters, other: Mapping[str, Tensor] | None, shown: bool) -> None:
    """Restore a student and its average after nnU-Net has loaded the weights it saved.

    The average is restored even if the settings no longer ask for one, because validation uses it.

    Args:
        joint: The student; nnU-Net's weights are in it and in its average.
        other: The weights that nnU-Net did not save; ``None`` if the training had no average.
        shown: Whether nnU-Net saved the average, so that ``other`` holds the student's own weights, or the reverse.
    """
    if other is None:
        if joint.average is not None:  # added to the settings since
            joint.average.restart()
        return
    if joint.average is None:
        joint.average = WeightAverage(joint.student, decay=1.0)
    load_tensors(joint.student if shown else joint.average.network, other)
