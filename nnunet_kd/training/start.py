"""Initial weights fitted to a teacher's outputs on training patches: draws the patches, and logs what comes of it."""

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

from nnunet_kd import pruning
from nnunet_kd.pruning.heads import Heads

PATCHES = 24  # to which a start is fitted at most
FEWEST = 12  # with fewer, small patches hold too little of rare classes
VOXELS = 24 * 96**3  # in all patches together, since the student runs on them at once
# One patch takes as long as seven do in training (benchmarks/start_time.py), so a start takes less than a tenth.
TRAINED_PATCHES = 120  # for each patch of a start
CHECKED = 6  # patches, at least, to which the start is not fitted, on which its Dice is measured
RARE = 3  # patches; more are drawn while a class is in fewer
GONE = 0.1  # share of the teacher's Dice for a class, below which the start has lost it
EVERY = 10.0  # seconds between two lines on progress

Log = Callable[[str], None]


@dataclass(frozen=True)
class Patches:
    """Augmented training patches.

    Attributes:
        images: ``(B, channels, *patch)``, a tensor for each batch.
        targets: nnU-Net's at the finest resolution, a tensor for each batch.
    """

    images: list[Tensor]
    targets: list[Tensor]

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Patches:
        """Collect batches of images and targets."""
        images, targets = zip(*batches, strict=True)
        return cls(list(images), list(targets))


def patches_wanted(trained: int, patch: Sequence[int]) -> int:
    """Return how many patches to fit a start to.

    Args:
        trained: How many patches the whole training will see.
        patch: Their size in voxels.
    """
    affordable = min(trained // TRAINED_PATCHES, VOXELS // math.prod(patch))
    return min(max(affordable, FEWEST), PATCHES)


def draw_patches(
    batches: Iterator[tuple[Tensor, Tensor]], count: int, size: int, classes: Callable[[Tensor], Tensor]
) -> Patches:
    """Draw patches in whole batches, and more while a class is in few of them.

    Args:
        batches: Images and targets without end.
        count: How many patches to draw at least. At most as many again are looked through for rare classes.
        size: Patches per batch.
        classes: Tells which classes each patch of a target has, boolean ``(B, classes)``.
    """
    drawn = list(itertools.islice(batches, math.ceil(count / size)))
    found = torch.stack([classes(target).sum(0) for _, target in drawn]).sum(0)
    for _ in range(len(drawn)):
        rare = found < RARE
        if not rare.any():
            break
        images, target = next(batches)
        there = classes(target)
        if (there & rare).any():
            drawn.append((images, target))
            found = found + there.sum(0)
    return Patches.of(drawn)


class Progress:
    """Says in the log from time to time how much of the work is done, and how long the rest will take.

    Args:
        log: Takes a line.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = self._said = time.monotonic()

    def __call__(self, share: float) -> None:
        """Take the share of the work that is done."""
        now = time.monotonic()
        if now - self._said >= EVERY and share < 1:
            left = (now - self._begun) / share * (1 - share)
            self._log(f"initial weights: {share:.0%} are fitted, about {left:.0f} s are left")
            self._said = now


def fit_start(
    teacher: nn.Module, student: nn.Module, patches: Sequence[Tensor], *, prune: bool, heads: Heads, log: Log
) -> None:
    """Fit a student to its teacher's outputs on training patches, and log how it went.

    Args:
        teacher: The trained network. With ``prune`` its channels are reordered.
        student: The same network but for its widths. Its weights are replaced.
        patches: Images ``(B, channels, *patch)``, a tensor for each batch.
        prune: Give the student the channels with which the teacher's layers lose least, instead of every r-th.
        heads: What the logits belong to.
        log: Takes a line.
    """
    begun = time.monotonic()
    count = sum(len(batch) for batch in patches)
    log(f"initial weights: fitted to the teacher's outputs on {count} training patches")
    pruned = pruning.prune(teacher, student, patches, heads=heads, reorder=prune, progress=Progress(log))
    if pruned.refusal is not None:
        log(f"initial weights: every r-th channel of the teacher's: {pruned.refusal}")
    elif prune:
        log(f"initial weights: the best channels of {pruned.reordered} groups of the teacher's")
    shares = pruned.explained.values()
    log(
        f"initial weights: {len(shares)} layers fitted to the teacher's in {time.monotonic() - begun:.0f} s, which "
        f"explain {min(shares, default=1.0):.0%} to {max(shares, default=1.0):.0%} of its variance"
    )


@torch.no_grad()
def patch_dice(network: nn.Module, patches: Patches, heads: Heads, ignore_label: int | None) -> np.ndarray:
    """Compute the Dice of each foreground class over all voxels of the patches, NaN where neither side has the class.

    Args:
        network: Gives logits, one tensor or several of which the first is the finest.
        patches: Patches on the network's device.
        heads: What the logits belong to.
        ignore_label: Label of voxels that do not count.

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
    """Tell which of the foreground classes or regions are in each patch, boolean ``(B, count)``."""
    if heads == "regions":
        return target[:, :count].flatten(2).any(2).cpu()
    return torch.stack([(target == label).flatten(1).any(1) for label in range(1, count + 1)], 1).cpu()


def describe(names: Sequence[str], teacher: np.ndarray, start: np.ndarray) -> tuple[str, str | None]:
    """Write a line with the Dice of start and teacher for each class, and a warning if the start has lost one."""
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
    """Name the foreground classes or regions in the order of the network's outputs.

    Args:
        labels: The entry ``labels`` of ``dataset.json``.
        heads: What the outputs belong to.
    """
    own = {name: value for name, value in labels.items() if name != "ignore" and np.any(np.asarray(value) != 0)}
    return list(own) if heads == "regions" else sorted(own, key=lambda name: int(own[name]))


def _valid(target: Tensor, heads: Heads, ignore_label: int | None) -> Tensor | None:
    """Tell which voxels count; ``None``: all."""
    if ignore_label is None:
        return None
    return ~target[:, -1:].bool() if heads == "regions" else target != ignore_label
