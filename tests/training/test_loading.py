import itertools

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunet_kd.training.loading import (
    TRAINING,
    VALIDATION,
    SeededBatches,
    repeat_exactly,
    seeded_augmenter,
    seeded_loaders,
)


class RandomLoader:
    """Draw from every generator that an augmentation can use."""

    def set_thread_id(self, thread_id):
        pass

    def __next__(self):
        return {"data": torch.rand(1).item(), "numpy": np.random.rand()}


def batches(count, first=0, stream=TRAINING, seed=7, rank=0, workers=0):
    augmenter = seeded_augmenter(RandomLoader(), seed, stream, rank, first, workers, pin_memory=False)
    drawn = [tuple(batch.values()) for batch in itertools.islice(augmenter, count)]
    if workers:
        augmenter._finish()
    return drawn


def test_batch_depends_on_its_number_alone():
    whole = batches(8)
    assert len(set(whole)) == 8
    assert batches(3, first=5) == whole[5:]
    for workers in (1, 2, 3):
        assert batches(8, workers=workers) == whole


def test_streams_ranks_and_seeds_differ():
    drawn = [batches(2), batches(2, stream=VALIDATION), batches(2, rank=1), batches(2, seed=8)]
    assert len({batch for run in drawn for batch in run}) == 8


@pytest.mark.parametrize(("allowed", "expected"), [("0", (0, 0)), ("1", (1, 1)), ("3", (3, 1))])
def test_workers_start_with_the_loaders_as_many_as_nnunet_starts(monkeypatch, allowed, expected):
    monkeypatch.setenv("nnUNet_n_proc_DA", allowed)
    monkeypatch.setattr("os.cpu_count", lambda: 8)  # the limit of nnU-Net
    loaders = seeded_loaders(
        (RandomLoader(), RandomLoader()), (5, 2), 1, seed=7, rank=0, pin_memory=False, check=lambda _: None
    )
    processes = [getattr(loader, "_processes", []) for loader in loaders]
    assert tuple(map(len, processes)) == expected
    pids = [process.pid for of_loader in processes for process in of_loader]
    assert None not in pids and pids == sorted(pids)  # those for training first
    drawn = [tuple(next(loader).values()) for loader in loaders]
    for loader in loaders if any(expected) else ():
        loader._finish()
    assert drawn == [batches(1, first=5)[0], batches(1, first=2, stream=VALIDATION)[0]]


def test_a_worker_runs_one_thread():
    loader = SeededBatches(RandomLoader(), 0, TRAINING, 0, 0, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        loader.set_thread_id(0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_blur_does_not_depend_on_run_time():
    blurs = [GaussianBlurTransform(benchmark=True) for _ in range(2)]
    composed = ComposeTransforms([RandomTransform(blurs[0]), ComposeTransforms([blurs[1]]), MirrorTransform((0,))])
    repeat_exactly(composed)
    assert [blur.benchmark for blur in blurs] == [False, False]
