import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_kd.training import start as fitted_start
from nnunet_kd.training.start import (
    Patches,
    Progress,
    classes_there,
    describe,
    draw_patches,
    head_names,
    patch_dice,
    patches_wanted,
)


@pytest.mark.parametrize(
    ("epochs", "steps", "patch", "count"),
    [
        (1000, 250, (96, 96, 96), 24),
        (1000, 250, (112, 112, 112), 15),  # the student runs on all of them at once
        (1000, 250, (512, 512), 24),
        (25, 50, (40, 56, 40), 20),  # a tenth of a short training's time
        (2, 2, (32, 32, 32), 12),
        (1000, 250, (320, 320, 320), 12),
    ],
)
def test_the_number_of_patches_follows_from_the_schedule(epochs, steps, patch, count):
    assert patches_wanted(epochs * steps * 2, patch) == count


def batches_of(labels):
    """An endless iterator over batches of two patches with one class each."""
    for number, label in enumerate(itertools.cycle(labels)):
        images = torch.full((2, 1, 4, 4), float(number))
        yield images, torch.full((2, 1, 4, 4), float(label))


def test_more_patches_are_drawn_if_a_class_is_rare():
    def classes(target):
        return classes_there(target, "classes", 2)

    common = draw_patches(batches_of([1, 2]), 8, 2, classes)
    assert len(common.images) == 4
    rare = draw_patches(batches_of([1, 1, 1, 1, 1, 2, 1, 2]), 8, 2, classes)
    assert [int(target.max()) for target in rare.targets] == [1, 1, 1, 1, 2, 2]
    assert [float(images.max()) for images in rare.images] == [0, 1, 2, 3, 5, 7]
    absent = draw_patches(batches_of([1]), 8, 2, classes)
    assert len(absent.images) == 4


def test_regions_are_looked_for_in_their_channels():
    target = torch.zeros(2, 3, 4, 4)
    target[0, 1, 2, 2] = 1
    target[1, 2] = 1  # ignored voxels
    assert classes_there(target, "regions", 2).tolist() == [[False, True], [False, False]]


def test_progress_reports_the_remaining_time(monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(fitted_start.time, "monotonic", lambda: float(next(now)))
    lines = []
    progress = Progress(lines.append)
    for step in range(6):
        progress((step + 1) / 6)
    assert lines == [
        "initial weights: 33% of the fit is done, about 24 s are left",
        "initial weights: 67% of the fit is done, about 12 s are left",
    ]


class Said(nn.Module):
    """A network that returns prepared logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = iter(logits)

    def forward(self, _images):
        return [next(self.logits), None]


@pytest.mark.parametrize("heads", ["classes", "regions"])
@pytest.mark.parametrize("ignored", [False, True])
def test_dice_is_over_all_voxels_that_are_not_ignored(heads, ignored):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, 5, 6, generator=generator) for _ in range(2)]
    skipped = [torch.rand(2, 1, 5, 6, generator=generator) < 0.3 for _ in range(2)]
    if heads == "regions":
        targets = [(torch.rand(2, 3, 5, 6, generator=generator) < 0.4).float() for _ in range(2)]
        given, wanted = [one > 0 for one in logits], [one.bool() for one in targets]
        targets = [torch.cat((one, out), 1) if ignored else one for one, out in zip(targets, skipped, strict=True)]
    else:
        targets = [torch.randint(3, (2, 1, 5, 6), generator=generator).float() for _ in range(2)]
        given = [torch.stack([one.argmax(1) == label for label in (1, 2)], 1) for one in logits]
        wanted = [torch.cat([one == label for label in (1, 2)], 1) for one in targets]
        if ignored:
            targets = [one.masked_fill(out, 3) for one, out in zip(targets, skipped, strict=True)]
    counts = [~out if ignored else torch.ones_like(out) for out in skipped]
    both = sum((g & w & c).sum((0, 2, 3)) for g, w, c in zip(given, wanted, counts, strict=True))
    each = sum((g & c).sum((0, 2, 3)) + (w & c).sum((0, 2, 3)) for g, w, c in zip(given, wanted, counts, strict=True))
    patches = Patches([torch.zeros(2, 1, 5, 6)] * 2, targets)
    found = patch_dice(Said(logits), patches, heads, 3 if ignored else None)
    np.testing.assert_allclose(found, 2 * both.numpy() / each.numpy(), rtol=1e-6)


def test_a_lost_class_causes_a_warning():
    line, warning = describe(["anterior", "posterior"], np.array([0.88, 0.86]), np.array([0.81, 0.0]))
    assert line.endswith("Dice on other training patches (the teacher's): anterior 0.81 (0.88), posterior 0.00 (0.86)")
    assert warning.startswith("WARNING: the student starts without posterior, which its teacher finds.")
    assert describe(["a"], np.array([math.nan]), np.array([math.nan]))[1] is None  # in none of the patches
    assert describe(["a"], np.array([0.0]), np.array([0.0]))[1] is None  # the teacher does not find it either


def test_names_are_in_the_order_of_the_outputs():
    assert head_names({"background": 0, "edema": 2, "core": 1, "ignore": 3}, "classes") == ["core", "edema"]
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    assert head_names(regions, "regions") == ["whole", "core"]
