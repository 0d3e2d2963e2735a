"""Seeded data loading: batch ``i`` does not depend on earlier batches or on the number of workers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

Check = Callable[[Mapping[str, Any]], str | None]
_FAULT = "fault"

TRAINING, VALIDATION, NETWORK, START = range(4)  # independent streams of random numbers


def seed_everything(seed: int, *position: int) -> None:
    """Seed Python, NumPy and PyTorch from a seed and a position (stream, rank, batch...)."""
    words = np.random.SeedSequence([seed, *position]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


@contextmanager
def generators_left_alone() -> Iterator[None]:
    """Restore the CPU random states of Python, NumPy and PyTorch at the end of the block."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def repeat_exactly(transforms: Any) -> None:
    """Fix the implementation of the Gaussian blur, which nnU-Net chooses by its run time.

    The implementations differ in the last digits.

    Args:
        transforms: nnU-Net's composed transforms, changed in place.
    """
    for inner in getattr(transforms, "transforms", [getattr(transforms, "transform", None)]):
        if inner is not None:
            repeat_exactly(inner)
    if isinstance(transforms, GaussianBlurTransform):
        transforms.benchmark = False  # always the convolution, the faster of the two for its small kernels


class SeededBatches:
    """An endless data loader that seeds all random numbers by the number of each batch.

    Args:
        loader: nnU-Net's data loader, which crops and augments one batch per ``next``.
        seed: The seed of the training.
        stream: :data:`TRAINING` or :data:`VALIDATION`.
        rank: The rank of this process under DDP.
        first: The number of the first batch, above 0 when a training resumes.
        workers: The number of processes that take turns in making batches.
        check: The function that describes the fault of a batch; :func:`checked` raises it in the training process.
    """

    def __init__(
        self, loader: Any, seed: int, stream: int, rank: int, first: int, workers: int, check: Check | None = None
    ) -> None:
        self.loader = loader
        self._check = check
        self._position = (seed, stream, rank)
        self._next = first
        self._workers = workers

    def set_thread_id(self, thread_id: int) -> None:
        """Make this worker start with batch ``thread_id`` and then make every ``workers``-th one."""
        # A forked worker inherits OpenMP's record of a thread pool but not the threads, and would wait for them.
        torch.set_num_threads(1)
        self._next += thread_id
        self.loader.set_thread_id(thread_id)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        seed_everything(*self._position, self._next)
        self._next += self._workers
        batch = next(self.loader)
        fault = None if self._check is None else self._check(batch)
        return batch if fault is None else {**batch, _FAULT: fault}


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch, or raise ``ValueError`` if the check found a fault."""
    if _FAULT in batch:
        raise ValueError(batch[_FAULT])
    return batch


class _InProcesses(MultiThreadedAugmenter):  # type: ignore[misc]  # untyped
    def start(self) -> None:
        """Start the processes now instead of when the first batch is asked for."""
        self._start()

    def __next__(self) -> dict[str, Any]:
        return checked(super().__next__())


class _InThisProcess(SingleThreadedAugmenter):  # type: ignore[misc]  # untyped
    def __next__(self) -> dict[str, Any]:
        return checked(super().__next__())


def seeded_augmenter(
    loader: Any,
    seed: int,
    stream: int,
    rank: int,
    first: int,
    workers: int,
    pin_memory: bool,
    check: Check | None = None,
) -> MultiThreadedAugmenter | SingleThreadedAugmenter:
    """Return the batches of :class:`SeededBatches` in order, made by ``workers`` processes, or by this one if 0.

    The processes start at once, as nnU-Net's do: later, they would be forked from a process that has compiled a network
    and runs threads of its own.

    ``next`` raises ``ValueError`` for a batch that fails the ``check``.
    """
    batches = SeededBatches(loader, seed, stream, rank, first, max(workers, 1), check)
    if workers == 0:
        return _InThisProcess(batches, None)
    # Each worker queues one batch, about as many in all as nnU-Net's queue: batches are large and may be pinned.
    made = _InProcesses(batches, None, workers, num_cached_per_queue=1, pin_memory=pin_memory, wait_time=0.002)
    made.start()
    return made


def seeded_loaders(
    loaders: tuple[Any, Any],
    iterations: tuple[int, int],
    epoch: int,
    *,
    seed: int,
    rank: int,
    pin_memory: bool,
    check: Check,
) -> tuple[Any, Any]:
    """Make seeded loaders from nnU-Net's, with as many processes as nnU-Net would start, those for training first.

    Args:
        loaders: The loaders for training and validation, which crop and augment a batch per ``next``.
        iterations: The number of batches per epoch for training and for validation.
        epoch: The first epoch.
        seed: The seed of the training.
        rank: The rank of this process under DDP.
        pin_memory: Whether batches are put into pinned memory for transfers to a GPU.
        check: The function that describes the fault of a batch.
    """
    workers = get_allowed_n_proc_DA()
    shares = workers, max(1, workers // 2) if workers else 0
    train, val = (
        seeded_augmenter(loader, seed, stream, rank, epoch * count, share, pin_memory, check)
        for loader, stream, count, share in zip(loaders, (TRAINING, VALIDATION), iterations, shares, strict=True)
    )
    return train, val


@contextmanager
def no_worker_processes() -> Iterator[None]:
    """Make nnU-Net build its data loaders in this process."""
    variable = "nnUNet_n_proc_DA"
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
