"""Fitting initial weights to a teacher's outputs: drawing the patches, and logging how well the student does."""

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
from nnunet_kd.pruning.heads import Heads, MappedHeads

PATCHES = 24  # the most to which initial weights are fitted
FEWEST = 12  # with fewer, small patches hold too little of rare classes
VOXELS = 24 * 96**3  # in all patches together, since the student runs on them at once
# Fitting to one patch takes as long as training on seven (benchmarks/start_time.py), so the fit takes less than a tenth
# of the training.
TRAINED_PATCHES = 120  # for each patch of the fit
CHECKED = 6  # patches, at least, that are left out of the fit and on which the Dice is measured
RARE = 3  # patches; more are drawn while fewer contain a class
GONE = 0.1  # a class is lost if the student's Dice is below this share of the teacher's
EVERY = 10.0  # seconds between two progress messages

Log = Callable[[str], None]


@dataclass(frozen=True)
class Patches:
    """Augmented training patches.

    Attributes:
        images: Images ``(B, channels, *patch)``, one tensor per batch.
        targets: nnU-Net's targets at the finest scale, one tensor per batch.
    """

    images: list[Tensor]
    targets: list[Tensor]

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Patches:
        """Collect batches of images and targets."""
        images, targets = zip(*batches, strict=True)
        return cls(list(images), list(targets))


def patches_wanted(trained: int, patch: Sequence[int]) -> int:
    """Return the number of patches to which initial weights are fitted.

    Args:
        trained: The number of patches that the whole training sees.
        patch: The size of a patch in voxels.
    """
    affordable = min(trained // TRAINED_PATCHES, VOXELS // math.prod(patch))
    return min(max(affordable, FEWEST), PATCHES)


def draw_patches(
    batches: Iterator[tuple[Tensor, Tensor]], count: int, size: int, classes: Callable[[Tensor], Tensor]
) -> Patches:
    """Draw patches in whole batches, and continue while few of them contain a class.

    Args:
        batches: An endless iterator over images and targets.
        count: The least number of patches to draw. At most as many again are searched for rare classes.
        size: The number of patches per batch.
        classes: The function that tells which classes each patch of a target contains, boolean ``(B, classes)``.
    """
    drawn = list(itertools.islice(batches, math.ceil(count / size)))
    found = torch.stack([classes(target).sum(0) for _, target in drawn]).sum(0)
    for _ in range(len(drawn)):
        rare = found < RARE
        if not rare.any():
            break
        images, target = next(batches)
        present = classes(target)
        if (present & rare).any():
            drawn.append((images, target))
            found = found + present.sum(0)
    return Patches.of(drawn)


class Progress:
    """Log from time to time how much of the work is done, and how long the rest will take.

    Args:
        log: The function that writes a line to the log.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = self._said = time.monotonic()

    def __call__(self, share: float) -> None:
        """Report the share of the work that is done."""
        now = time.monotonic()
        if now - self._said >= EVERY and share < 1:
            left = (now - self._begun) / share * (1 - share)
            self._log(f"initial weights: {share:.0%} of the fit is done, about {left:.0f} s are left")
            self._said = now


def fit_start(
    teacher: nn.Module,
    student: nn.Module,
    patches: Sequence[Tensor],
    *,
    prune: bool,
    heads: Heads,
    log: Log,
    mapped: MappedHeads | None = None,
    teacher_patches: Sequence[Tensor] | None = None,
) -> None:
    """Fit a student to its teacher's outputs on training patches, and log how it went.

    Args:
        teacher: The trained network. With ``prune`` its channels are reordered.
        student: The same architecture with other widths. Its weights are replaced.
        patches: Images ``(B, channels, *patch)``, one tensor per batch.
        prune: Whether the student gets the best channels of the teacher instead of every r-th.
        heads: Whether logits belong to exclusive classes or to regions.
        log: The function that writes a line to the log.
        mapped: How the student's outputs follow from the teacher's; ``None`` if they have the same classes.
        teacher_patches: The patches as the teacher sees them; ``None`` if it sees the student's.
    """
    begun = time.monotonic()
    count = sum(len(batch) for batch in patches)
    log(f"initial weights: fitted to the teacher's outputs on {count} training patches")
    pruned = pruning.prune(
        teacher,
        student,
        patches,
        heads=heads,
        mapped=mapped,
        teacher_images=teacher_patches,
        reorder=prune,
        progress=Progress(log),
    )
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
def segmented(network: nn.Module, images: Tensor, heads: Heads, ignore_label: int | None) -> Tensor:
    """Segment patches, in the form of nnU-Net's target at the finest scale with no voxel ignored.

    Args:
        network: A network in evaluation mode whose output is one tensor of logits, or several, the finest scale first.
        images: The patches ``(B, channels, *patch)``.
        heads: Whether logits belong to exclusive classes or to regions.
        ignore_label: The label of voxels that are ignored, or ``None``.
    """
    logits = network(images)
    logits = logits if isinstance(logits, Tensor) else logits[0]
    if heads == "classes":
        return logits.argmax(1, keepdim=True).to(images)
    inside = (logits > 0).to(images)
    return inside if ignore_label is None else torch.cat((inside, torch.zeros_like(inside[:, :1])), 1)


def have_reference(target: Tensor, heads: Heads, ignore_label: int | None) -> Tensor:
    """Tell which patches of a target have a reference, boolean ``(B,)``.

    Those of a case without reference are ignored everywhere, except that nnU-Net pads them with background. So a patch
    has a reference if no voxel is ignored, or if one is foreground.
    """
    valid = _valid(target, heads, ignore_label)
    if valid is None:
        return torch.ones(len(target), dtype=torch.bool)
    inside = (target[:, :-1] > 0).any(1, keepdim=True) if heads == "regions" else target > 0
    return (valid.flatten(1).all(1) | (valid & inside).flatten(1).any(1)).cpu()


@torch.no_grad()
def patch_dice(network: nn.Module, patches: Patches, heads: Heads, ignore_label: int | None) -> np.ndarray:
    """Compute the Dice of each foreground class over all voxels of the patches; NaN for an absent class.

    Args:
        network: A network whose output is one tensor of logits, or several with the finest scale first.
        patches: Patches on the network's device.
        heads: Whether logits belong to exclusive classes or to regions.
        ignore_label: The label of voxels that are ignored, or ``None``.

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
    """Tell which foreground classes or regions each patch contains, boolean ``(B, count)``."""
    if heads == "regions":
        return target[:, :count].flatten(2).any(2).cpu()
    return torch.stack([(target == label).flatten(1).any(1) for label in range(1, count + 1)], 1).cpu()


def describe(
    names: Sequence[str], teacher: np.ndarray, start: np.ndarray, agreement: bool = False
) -> tuple[str, str | None]:
    """Describe the Dice of student and teacher for each class, with a warning if the student has lost one.

    Args:
        names: The names of the classes or regions.
        teacher: The teacher's Dice for each of them.
        start: The student's.
        agreement: Whether the patches have no reference, so that the Dice is that to the teacher's own segmentation.
    """
    lost = [name for name, theirs, ours in zip(names, teacher, start, strict=True) if ours < GONE * theirs]
    if agreement:
        said = [f"{name} {ours:.2f}" for name, ours in zip(names, start, strict=True)]
        line = "initial weights: agreement with the teacher (Dice) on other training patches, which have no reference"
        line = f"{line}: {', '.join(said)}"
    else:
        said = [f"{name} {ours:.2f} ({theirs:.2f})" for name, theirs, ours in zip(names, teacher, start, strict=True)]
        line = f"initial weights: Dice on other training patches (the teacher's): {', '.join(said)}"
    if not lost:
        return line, None
    return line, (
        f"WARNING: the student starts without {', '.join(lost)}, which its teacher finds. A short training may "
        "not recover them; another nnunet_kd.training.seed draws other patches"
    )


def head_names(labels: Mapping[str, Any], heads: Heads) -> list[str]:
    """Return the names of the foreground classes or regions in the order of the network's outputs.

    Args:
        labels: The entry ``labels`` of ``dataset.json``.
        heads: Whether the outputs belong to exclusive classes or to regions.
    """
    own = {name: value for name, value in labels.items() if name != "ignore" and np.any(np.asarray(value) != 0)}
    return list(own) if heads == "regions" else sorted(own, key=lambda name: int(own[name]))


def _valid(target: Tensor, heads: Heads, ignore_label: int | None) -> Tensor | None:
    """Return the mask of voxels that are not ignored, or ``None`` if none are."""
    if ignore_label is None:
        return None
    return ~target[:, -1:].bool() if heads == "regions" else target != ignore_label
