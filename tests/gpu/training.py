"""Trainers in nnU-Net's mixed precision, on the GPU or with the CPU in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_kd.training import trainer as trainer_file
from nnunet_kd.training.kd_sam import trainer as kd_sam_file
from tests.conftest import Workspace
from tests.gpu.place import Place
from tests.gpu.synchronizations import Synchronizations

MOST_STEPS = 14  # the first steps may be skipped: the scaler begins with 2^16 and halves its scale in each


@contextmanager
def mixed_precision(place: Place) -> Iterator[None]:
    """Let trainers autocast to float16; on the CPU, where nnU-Net does not, in the place of its empty context."""
    if not place.fake:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for file in (trainer_file, kd_sam_file):
            patch.setattr(file, "nullcontext", place.autocast)
        for name in ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"):
            patch.setattr(functional, name, _as_in_float16(getattr(functional, name)))
        yield


def _as_in_float16(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a convolution round to float16 where autocast does, but compute in float32: CPUs are forty times as fast."""

    def rounding(*tensors: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return convolve(*tensors, **options)
        with torch.autocast("cpu", enabled=False):
            rounded = [one.half().float() if isinstance(one, Tensor) else one for one in tensors]
            return convolve(*rounded, **options).half()

    return rounding


def make(place: Place, kind: type, plans: dict, workspace: Workspace, configuration: str = "3d_fullres") -> Any:
    """Construct a trainer as nnU-Net's command does, with a gradient scaler wherever it runs."""
    trainer = kind({**plans, "continue_training": False}, configuration, 0, workspace.dataset_json, place.device)
    if place.fake:
        trainer.grad_scaler = torch.amp.GradScaler("cpu")
    return trainer


class Steps:
    """Training steps that are watched.

    Args:
        place: Where the checks run.
        trainer: A trainer whose training has begun.
        may_wait: Whether the CPU can wait for the GPU between the step's beginning and the end of its backward pass.
    """

    def __init__(self, place: Place, trainer: Any, may_wait: bool = False) -> None:
        self._trainer = trainer
        self._watch = Synchronizations(place, may_wait)
        self.types: set[torch.dtype] = set()
        self.skipped = 0

    def take(self, batches: Iterator[Any]) -> dict[str, Any]:
        """Take a step to warm up, then watched steps until one of them is not skipped, and return its values.

        The first step makes what later steps reuse, such as wavelets' matrices, and copies it to the GPU.
        """
        self._trainer.train_step(next(batches))
        for _ in range(MOST_STEPS):
            values = self._watched(next(batches))
            if not values["skipped_steps"]:
                return values
            self.skipped += 1
        raise AssertionError(f"{MOST_STEPS} steps in a row were skipped: {values}")

    @property
    def waits(self) -> int:
        """How often the CPU waited in all watched steps."""
        return self._watch.count

    def _watched(self, batch: dict[str, Any]) -> dict[str, Any]:
        trainer, scaler = self._trainer, self._trainer.grad_scaler
        layers = [one for one in trainer.trained().student.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]
        hooks = [one.register_forward_hook(lambda *given: self.types.add(given[2].dtype)) for one in layers]
        unscale = scaler.unscale_

        def unscale_after_the_backward_pass(optimizer: torch.optim.Optimizer) -> None:
            self._watch.off()
            unscale(optimizer)

        scaler.unscale_ = unscale_after_the_backward_pass
        self._watch.on()
        try:
            values: dict[str, Any] = trainer.train_step(batch)
        finally:
            self._watch.off()
            del scaler.unscale_
            for hook in hooks:
                hook.remove()
        return values


def batches_of(trainer: Any) -> Iterator[dict[str, Any]]:
    """Return the batches of a training that has begun."""
    while True:
        yield next(trainer.dataloader_train)


def learning(trainer: Any) -> list[Tensor]:
    """Return a copy of all parameters that train, the adapters' among them."""
    return [one.detach().clone() for one in trainer.trained().parameters() if one.requires_grad]
