"""Initial weights fitted to a teacher's outputs: on which patches, how far it has come, and what it is worth."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor, nn

from nnunet_kd.pruning.heads import Heads
from nnunet_kd.pruning.ordering import sort_channels
from nnunet_kd.pruning.reconstruction import reconstruct
from nnunet_kd.pruning.selection import selected_weights

PATCHES = 24  # that a start is fitted to
FEWEST = 12  # fewer find less of rare classes in small patches
VOXELS = 24 * 96**3  # of all patches together: the student runs on them at once
# One patch takes as long as seven do in training (benchmarks/start_time.py), so a start takes less than a tenth.
TRAINED_PATCHES = 120  # for each patch of a start
CHECKED = 6  # patches, at least, that the start is not fitted to, on which its Dice is measured
WITHOUT = 3  # patches in which a class has to be, or more are drawn
GONE = 0.1  # of the teacher's Dice for a class, below which the start has lost it
EVERY = 10.0  # seconds between two lines on progress

Log = Callable[[str], None]


@dataclass(frozen=True)
class Patches:
    """Augmented training patches.

    Attributes:
        images: ``(B, channels, *patch)``, a tensor for each batch.
        targets: nnU-Net's at the finest resolution, for each batch.
    """

    images: list[Tensor]
    targets: list[Tensor]

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Patches:
        """Of images and targets."""
        images, targets = zip(*batches, strict=True)
        return cls(list(images), list(targets))


def patches_wanted(trained: int, patch: Sequence[int]) -> int:
    """How many patches to fit a start to.

    Args:
        trained: Number of patches the whole training will see.
        patch: Their size in voxels.
    """
    affordable = min(trained // TRAINED_PATCHES, VOXELS // math.prod(patch))
    return min(max(affordable, FEWEST), PATCHES)


def draw_patches(
    batches: Iterator[tuple[Tensor, Tensor]], count: int, size: int, classes: Callable[[Tensor], Tensor]
) -> Patches:
    """Patches in whole batches, and more where a class is in few of them.

    Args:
        batches: Images and targets without end.
        count: How many patches to draw at least. At most as many again are looked at for those with rare classes.
        size: Of a batch.
        classes: Which classes each target has, boolean ``(B, classes)``.
    """
    drawn = list(itertools.islice(batches, math.ceil(count / size)))
    found = torch.stack([classes(target).sum(0) for _, target in drawn]).sum(0)
    for _ in range(len(drawn)):
        rare = found < WITHOUT
        if not rare.any():
            break
        images, target = next(batches)
        there = classes(target)
        if (there & rare).any():
            drawn.append((images, target))
            found = found + there.sum(0)
    return Patches.of(drawn)


class Progress:
    """Says in the log how much of the work is done, and how long the rest will take.

    Args:
        steps: Of all the work together.
        log: Takes a line.
    """

    def __init__(self, steps: int, log: Log) -> None:
        self._steps = steps
        self._log = log
        self._done = 0
        self._begun = self._said = time.monotonic()

    def __call__(self, work: Iterable[Any], count: int) -> Iterator[Any]:
        """The work, each item of which is one step."""
        del count
        for item in work:
            yield item
            self._done += 1
            now = time.monotonic()
            if now - self._said >= EVERY and self._done < self._steps:
                left = (now - self._begun) / self._done * (self._steps - self._done)
                self._log(f"initial weights: {self._done / self._steps:.0%} are fitted, about {left:.0f} s are left")
                self._said = now


def fit_start(
    teacher: nn.Module, student: nn.Module, patches: Sequence[Tensor], *, prune: bool, heads: Heads, log: Log
) -> None:
    """Fit a student that has weights of its teacher to what the teacher makes of the patches.

    Args:
        teacher: In evaluation mode. Where channels are chosen, their order in it changes.
        student: Its weights are changed in place.
        patches: ``(B, channels, *patch)``.
        prune: Give the student the channels with which the teacher's layers lose least, instead of every r-th.
        heads: What the outputs are.
        log: Takes lines on progress and result.
    """
    begun = time.monotonic()
    layers = sum(1 for module in student.modules() if isinstance(module, nn.modules.conv._ConvNd))
    progress = Progress((2 if prune else 1) * len(patches) + layers, log)
    count = sum(len(batch) for batch in patches)
    log(f"initial weights: fitted to the teacher's outputs on {count} training patches")
    if prune:
        try:
            chosen = sort_channels(teacher, student, patches, progress=progress)
            student.load_state_dict(selected_weights(teacher, student))
            log(f"initial weights: the best channels of {chosen} groups of the teacher's")
        except ValueError as error:
            log(f"initial weights: every r-th channel of the teacher's: {error}")
    explained = reconstruct(teacher, student, patches, heads=heads, progress=progress)
    lowest, highest = min(explained.values(), default=1.0), max(explained.values(), default=1.0)
    log(
        f"initial weights: {len(explained)} layers fitted to the teacher's in {time.monotonic() - begun:.0f} s, which "
        f"explain {lowest:.0%} to {highest:.0%} of its variance"
    )


@torch.no_grad()
def patch_dice(network: nn.Module, patches: Patches, heads: Heads, ignore_label: int | None) -> np.ndarray:
    """Dice of each foreground class over all voxels of the patches; not a number where neither has the class.

    Args:
        network: Gives logits, one tensor or several of which the first is the finest.
        patches: On its device.
        heads: What the logits are of.
        ignore_label: Of voxels that do not count.

    Shape:
        ``(classes without the background,)`` or ``(regions,)``.
    """
    training = network.training
    network.eval()
    sums: Any = 0
    for images, target in zip(patches.images, patches.targets, strict=True):
        logits = network(images)
        logits = logits if isinstance(logits, Tensor) else logits[0]
        valid = _valid(target, heads, ignore_label)
        if heads == "regions":
            given, wanted = (logits > 0).long(), target[:, : logits.shape[1]]
        else:
            given = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
            wanted = target if valid is None else target.masked_fill(~valid, 0)
        axes = [0, *range(2, logits.ndim)]
        counted = get_tp_fp_fn_tn(given, wanted, axes, None if valid is None else valid.float())[:3]
        sums = sums + torch.stack([part.double() for part in counted]).cpu()
    network.train(training)
    right, false, missed = sums[:, 0 if heads == "regions" else 1 :].numpy()
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * right / (2 * right + false + missed))


def classes_there(target: Tensor, heads: Heads, count: int) -> Tensor:
    """Which of the foreground classes or regions are in each patch, boolean ``(B, count)``."""
    if heads == "regions":
        return target[:, :count].flatten(2).any(2).cpu()
    return torch.stack([(target == label).flatten(1).any(1) for label in range(1, count + 1)], 1).cpu()


def describe(names: Sequence[str], teacher: np.ndarray, start: np.ndarray) -> tuple[str, str | None]:
    """A line with the Dice of teacher and start for each class, and a warning where the start has lost one."""
    said = [f"{name} {ours:.2f} ({theirs:.2f})" for name, theirs, ours in zip(names, teacher, start, strict=True)]
    lost = [name for name, theirs, ours in zip(names, teacher, start, strict=True) if ours < GONE * theirs]
    line = f"initial weights: Dice on other training patches (the teacher's): {', '.join(said)}"
    if not lost:
        return line, None
    return line, (
        f"WARNING: the student starts without {', '.join(lost)}, which its teacher finds. It may not learn "
        "them again in a short training; another nnunet_kd.training.seed draws other patches"
    )


def head_names(labels: Mapping[str, Any], heads: Heads) -> list[str]:
    """Names of the foreground classes or regions, in the order of the network's outputs.

    Args:
        labels: Of ``dataset.json``.
        heads: What they are.
    """
    own = {name: value for name, value in labels.items() if name != "ignore" and np.any(np.asarray(value) != 0)}
    return list(own) if heads == "regions" else sorted(own, key=lambda name: int(own[name]))


def _valid(target: Tensor, heads: Heads, ignore_label: int | None) -> Tensor | None:
    if ignore_label is None:
        return None
    return ~target[:, -1:].bool() if heads == "regions" else target != ignore_label
