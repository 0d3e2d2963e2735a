"""A loss refuses tensors that do not fit each other, and options that make no sense, in one sentence."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnunet_kd.losses import (
    CIRKDLoss,
    CWDLoss,
    DCDLoss,
    DPRDLoss,
    DualSelfLoss,
    FitNetsLoss,
    FocalDiceLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsKDLoss,
    PerceptualLoss,
    ReCoKDLoss,
    RKDLoss,
    SKDLoss,
)
from tests.losses.any_maps import fewer_examples, finite_or_refused
from tests.losses.random_maps import random_maps


@st.composite
def nearly(draw, shape):
    """The shape, or one that differs in one place."""
    shape, place = list(shape), draw(st.integers(0, 3))
    change = draw(st.sampled_from(["none", "none", "length", "more", "less"]))
    if change == "length":
        shape[place] = draw(st.integers(1, 3))
    elif change == "more":
        shape.insert(place, draw(st.integers(1, 3)))
    elif change == "less":
        del shape[place]
    return shape


@st.composite
def misfits(draw):
    """Shapes of student, teacher and labels, and what adapters are made for: the widths and the axes."""
    batch, width, *grid = draw(st.lists(st.integers(1, 3), min_size=4, max_size=5))
    wide, dim = draw(st.integers(1, 3)), len(grid)
    shapes = [draw(nearly(shape)) for shape in ((batch, width, *grid), (batch, wide, *grid), (batch, 1, *grid))]
    return *shapes, [draw(st.sampled_from([number, number, number, 2])) for number in (width, wide, dim)]


@fewer_examples
@given(misfits(), st.booleans(), st.sampled_from([torch.bool, torch.int64, torch.float32]), st.integers(-1, 3))
def test_tensors_that_do_not_fit_are_refused_in_one_sentence(made_from, regions, dtype, label):
    *shapes, fits = made_from
    student, teacher, mask = (torch.ones(shape) for shape in shapes)
    mask = (label * mask).to(dtype)
    for pair in ((student, teacher), (student, student)):
        for loss in (FitNetsLoss(), DCDLoss(), DCDLoss(bands="all"), DCDLoss(transform="published")):
            for projection in (None, loss.projection(*fits), nn.Identity(), nn.Flatten(2)):
                finite_or_refused(loss, *pair, projection)
        for options in ({}, {"levels": 2}, {"tokens": 2}):
            loss, adapter = FreeKDLoss(), FreeKDLoss(**options).projection(*fits)
            finite_or_refused(loss, *pair, adapter)
            finite_or_refused(loss.tuning, teacher, adapter)
        finite_or_refused(DPRDLoss(2), *pair, DPRDLoss(2).projection(*fits))
        finite_or_refused(DPRDLoss(2), *pair, DPRDLoss(2).projection(*fits), foreground=mask)
        for valid in (None, mask):
            options = {"target": mask, "regions": regions, "valid": valid, "num_classes": label}
            finite_or_refused(ReCoKDLoss(), *pair, ReCoKDLoss().projection(*fits), **options)
        for classes in (mask, mask.flatten(0, 1)):
            finite_or_refused(IFVDLoss(), *pair, classes=classes)
            finite_or_refused(IFVDLoss(), *pair, classes=classes, num_classes=label)
            for projection in (None, CIRKDLoss(pixel_memory=3).projection(*fits, 2), nn.Flatten(2)):
                finite_or_refused(CIRKDLoss(), *pair, projection, classes=classes)
                finite_or_refused(CIRKDLoss(), *pair, projection, classes=classes, num_classes=label)
        for loss in (RKDLoss(), SKDLoss(), SKDLoss(nodes=2)):
            finite_or_refused(loss, *pair)
        for loss in (CWDLoss(), LogitsKDLoss(), FocalDiceLoss()):
            finite_or_refused(loss, *pair, regions)
            finite_or_refused(loss, *pair, regions, mask)
        finite_or_refused(FocalDiceLoss(), student, mask, regions)
        for weights in ((1, 0.5), (1, 0), (0, 1)):
            adapters = DualSelfLoss(*weights).adapters(fits[:1], fits[1:2], fits[2])
            finite_or_refused(DualSelfLoss(), [pair[0]], [pair[1]], adapters)
            finite_or_refused(DualSelfLoss(), [pair[0], teacher], [pair[1]], adapters)
        finite_or_refused(PerceptualLoss(nn.Identity()), *pair)


KINDS_OF_LOSS = [
    CIRKDLoss,
    CWDLoss,
    DCDLoss,
    DPRDLoss,
    DualSelfLoss,
    FitNetsLoss,
    FocalDiceLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsKDLoss,
    RKDLoss,
    ReCoKDLoss,
    SKDLoss,
]
NUMBERS = [None, True, 0, -1, 3, 2.5, 1e-45, 1e-60, 1e30, 1e200, 10**400, float("inf"), float("nan")]
NO_NUMBERS = ["", "db4", "bior2.2", "lll", [], {}]


@pytest.mark.parametrize("kind", KINDS_OF_LOSS)
def test_any_option_is_used_or_refused_in_one_sentence(kind):
    student, teacher = random_maps((4, 5), 3, 0, torch.float32), random_maps((4, 5), 3, 1, torch.float32)
    labels = torch.arange(40).view(2, 4, 5) % 3

    def value(**options):
        loss = kind(**options)
        if kind is DualSelfLoss:
            return loss([student, student], [teacher], loss.adapters([3, 3], [3], 2))
        if kind is FocalDiceLoss:
            return loss(student, labels)
        if kind is IFVDLoss:
            return loss(student, teacher, classes=labels)
        if kind is CIRKDLoss:
            return loss(student, teacher, loss.projection(3, 3, 2, 3), classes=labels)
        if kind is DPRDLoss:
            return loss(student, teacher, loss.projection(3, 3, 2, grid=(4, 5)))
        if kind is ReCoKDLoss:
            return loss(student, teacher, loss.projection(3, 3, 2), target=labels[:, None])
        return loss(student, teacher, loss.projection(3, 3, 2)) if kind is FreeKDLoss else loss(student, teacher)

    for name in inspect.signature(kind).parameters:
        for option in NUMBERS + NO_NUMBERS:
            finite_or_refused(value, **{name: option})
