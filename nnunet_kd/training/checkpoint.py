"""What is in a checkpoint beside nnU-Net's own, and how it is written and read."""

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
    """``torch.save``; the file is complete, or the one before it."""
    with replacing(Path(path)) as unfinished:
        torch.save(content, unfinished)


def plainly_laid_out(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, each contiguous; names that share a tensor, of which nnU-Net has many, share it still."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        key = (weight.data_ptr(), weight.shape)
        if key not in made:
            made[key] = weight.contiguous()
    return {name: made[weight.data_ptr(), weight.shape] for name, weight in weights.items()}


def stock_checkpoint(save: Callable[[Any], None]) -> dict[str, Any]:
    """Return what nnU-Net saves, on the CPU.

    Args:
        save: nnU-Net's method, which writes into a file.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    checkpoint: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=False)
    checkpoint["network_weights"] = plainly_laid_out(checkpoint["network_weights"])
    return checkpoint


def saved_state(joint: StudentWithAdapters) -> dict[str, Any]:
    """Return what nnU-Net does not save of a student: its adapters and, beside an average, its own weights.

    With an average nnU-Net saves the averaged weights, which are those to predict with.
    """
    averaged = joint.average is not None
    return {
        "adapters": joint.adapters.state_dict(),
        "average": averaged_tensors(joint.student) if averaged else None,
        "average_shown": averaged,
    }


def check_resumable(saved: Any, path: str, places: list[Any], optimizer: str | None) -> None:
    """Check that a training can go on from a checkpoint.

    Args:
        saved: What :func:`saved_state` and the trainer added to it; ``None``: nothing.
        path: Where it is, for messages.
        places: See :attr:`nnunet_kd.distillation.distiller.Distiller.places`.
        optimizer: What the settings ask for now.

    Raises:
        ValueError: If it was begun by another trainer, with other terms or with another optimizer.
    """
    if saved is None:
        raise ValueError(f"{path} was not written by a trainer of nnunet_kd: train without --c")
    if saved.get("terms", places) != places:
        before, now = (", ".join(name for name, _ in them) for them in (saved["terms"], places))
        raise ValueError(
            f"this training was begun with other terms or stages ({before or 'none'}) than nnunet_kd.method of the "
            f"plans has now ({now or 'none'}): restore it, or train again without --c"
        )
    begun = saved["record"].get("optimizer") if "record" in saved else optimizer
    if begun != optimizer:  # its state is of other moments
        raise ValueError(
            f"this training was begun with {begun or 'SGD'} as its optimizer, which nnunet_kd.training of the "
            "plans no longer has: restore it, or train again without --c"
        )


def load_average(joint: StudentWithAdapters, other: Mapping[str, Tensor] | None, shown: bool) -> None:
    """Restore a student and its average, once nnU-Net has loaded the weights it saved.

    An average that the settings no longer ask for is restored too: it is what is validated.

    Args:
        joint: Has nnU-Net's weights, in its average too.
        other: The weights that nnU-Net did not save; ``None``: the training had no average.
        shown: Whether nnU-Net saved the average, and ``other`` are the student's own weights; if not, the reverse.
    """
    if other is None:
        if joint.average is not None:  # asked for since
            joint.average.restart()
        return
    if joint.average is None:
        joint.average = WeightAverage(joint.student, decay=1.0)
    load_tensors(joint.student if shown else joint.average.network, other)
