"""Whatever tensors a loss is given, it is finite with finite gradients, or says in one sentence what is wrong.

Tensors of every kind a training could come to: any small grid, odd, even and shorter than a wavelet's filter, the
four floating types, nothing but zeros or constants, dead voxels, numbers as small as 1e-30 and as large as 1e30.
"""

import inspect
import traceback
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import nnunet_kd
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
from tests.losses.random_maps import random_maps

PACKAGE = str(Path(nnunet_kd.__file__).parent)

examples = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain a failure takes minutes
)
fewer_examples = settings(examples, max_examples=60)

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
BATCHES, CHANNELS, SEEDS = st.integers(1, 3), st.integers(1, 6), st.integers(0, 99)
DIMS = st.integers(2, 3)
GRIDS = {dim: st.tuples(*[st.integers(1, 9)] * dim) for dim in (2, 3)}
SCALES = st.sampled_from([0.0, 1e-30, 1e-22, 1e-10, 1.0, 1.0, 1e4, 6e4, 6e4, 1e30])
KINDS = st.sampled_from(["noise", "constant", "negative", "one number", "dead voxels"])
WAVELETS = st.sampled_from(["haar", "db2", "db4", "sym4", "coif2", "db8"])
TEMPERATURES = st.sampled_from([0.001, 0.5, 1, 3.0, 4.0, 20.0, 1000])
SHARES = st.sampled_from([None, 0.0, 0.1, 0.6, 1.0])


def generator(seed):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Maps:
    """What a tensor is made from: short to print."""

    shape: tuple
    dtype: torch.dtype
    kind: str
    scale: float
    seed: int

    def tensor(self):
        numbers = torch.randn(self.shape, dtype=torch.float64, generator=generator(self.seed))
        if self.kind == "constant":
            numbers = torch.ones_like(numbers)
        elif self.kind == "negative":
            numbers = -numbers.abs()
        elif self.kind == "one number":
            numbers.flatten()[1:] = 0
        elif self.kind == "dead voxels":  # no channel active, as behind a ReLU
            numbers = numbers * (numbers[:, :1] > 0)
        largest = torch.finfo(self.dtype).max
        return (self.scale * numbers).clamp(-largest, largest).to(self.dtype)


def maps(shape):
    return st.builds(Maps, st.just(shape), DTYPES, KINDS, SCALES, SEEDS)


@st.composite
def pairs(draw, same_width=False):
    """Student and teacher on one grid, each of its own type and size; at times the same numbers."""
    batch, grid, width = draw(BATCHES), draw(GRIDS[draw(DIMS)]), draw(CHANNELS)
    student = draw(maps((batch, width, *grid)))
    if draw(st.integers(0, 4)) == 4:
        return student, student
    return student, draw(maps((batch, width if same_width else draw(CHANNELS), *grid)))


def precise(*made_from):
    """The type a loss computes in."""
    return reduce(torch.promote_types, [one.dtype for one in made_from], torch.float32)


def stage(loss, pair, bare, single):
    """Student and teacher, and an adapter of float32, as it is trained, or of the type the loss computes in."""
    student, teacher = (one.tensor() for one in pair)
    if bare and student.shape[1] == teacher.shape[1]:
        return student, teacher, None
    torch.manual_seed(0)
    projection = loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2)
    return student, teacher, projection.to(torch.float32 if single else precise(*pair))


def parameters_of(module):
    return [] if module is None else list(module.parameters())


def check(loss, learners, parameters=(), others=(), squares=False):
    """``loss(*learners)`` is finite with finite gradients.

    A half-precision gradient is float32's, rounded: infinite only where it is beyond the type. A loss of ``squares``
    of numbers beyond 1e15 may be infinite itself, and its gradients anything, unless all is float64. None is NaN.
    """
    values, gradients = [], []
    for half in (False, True):
        leaves = [x if half else x.to(torch.promote_types(x.dtype, torch.float32)) for x in learners]
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(*leaves)
        assert value.shape == () and value.dtype == precise(*learners, *others) and not value.isnan()
        found = torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True)
        values.append(value.detach())
        gradients.append([gradient for gradient in found if gradient is not None])
    assert values[0] == values[1] and gradients[0]
    largest = max(tensor.abs().max() for tensor in (*learners, *others))
    double = all(tensor.dtype == torch.float64 for tensor in (*learners, *others, *parameters))
    if squares and largest > 1e15 and not double:
        return
    assert values[0].isfinite()
    for single, half in zip(*gradients, strict=True):
        assert single.isfinite().all()
        assert torch.equal(single.to(half.dtype), half)


@examples
@given(
    pairs(),
    WAVELETS,
    st.integers(1, 5),
    st.sampled_from(["directional", "lll", "hhh", "detail", "all"]),
    st.booleans(),
    st.sampled_from(["level_mean", "energy"]),
    st.booleans(),
    st.booleans(),
)
def test_dcd_is_finite(pair, wavelet, levels, bands, reconstruct, weighting, bare, single):
    loss = DCDLoss(wavelet, levels, bands, reconstruct, weighting)
    student, teacher, phi = stage(loss, pair, bare, single)
    check(lambda s: loss(s, teacher, phi), [student], parameters_of(phi), [teacher], squares=True)


@fewer_examples
@given(pairs(), WAVELETS, st.integers(1, 5), st.booleans(), st.booleans())
def test_published_dcd_is_finite(pair, wavelet, levels, bare, single):
    loss = DCDLoss(wavelet, levels, transform="published")
    student, teacher, phi = stage(loss, pair, bare, single)
    check(lambda s: loss(s, teacher, phi), [student], parameters_of(phi), [teacher], squares=True)


@examples
@given(pairs(), st.booleans(), st.booleans())
def test_fitnets_is_finite(pair, bare, single):
    loss = FitNetsLoss()
    student, teacher, phi = stage(loss, pair, bare, single)
    check(lambda s: loss(s, teacher, phi), [student], parameters_of(phi), [teacher], squares=True)


@fewer_examples
@given(pairs(), st.integers(1, 4), st.integers(1, 4), WAVELETS, st.sampled_from([0, 0.5, 5.0]), st.booleans())
def test_freekd_is_finite(pair, levels, tokens, wavelet, feature_weight, single):
    loss = FreeKDLoss(levels, tokens, wavelet, feature_weight)
    student, teacher, both = stage(loss, pair, False, single)
    check(lambda s: loss(s, teacher, both), [student], [both.phi.weight], [teacher], squares=feature_weight > 0)


@fewer_examples
@given(pairs(), st.integers(1, 4), st.integers(1, 4), WAVELETS, st.booleans())
def test_prompts_of_freekd_are_tuned_with_finite_numbers(pair, levels, tokens, wavelet, single):
    loss = FreeKDLoss(levels, tokens, wavelet)
    _, teacher, both = stage(loss, pair, False, single)
    with torch.autocast("cpu", torch.bfloat16):
        filtered, redundancy = loss.tuning(teacher, both)
    assert filtered.dtype == teacher.dtype and filtered.isfinite().all()
    assert 0 <= redundancy <= 1 + 1e-5
    (filtered.double().mean() + redundancy).backward()
    assert both.prompts.tokens.grad.isfinite().all()


def some(shape, share):
    """Voxels that count: not told, none, all or some."""
    return None if share is None else torch.rand((shape[0], 1, *shape[2:]), generator=generator(0)) < share


@examples
@given(pairs(same_width=True), TEMPERATURES, st.booleans(), SHARES)
def test_cwd_is_finite(pair, temperature, regions, share):
    student, teacher = (one.tensor() for one in pair)
    valid = some(student.shape, share)
    check(lambda s: CWDLoss(temperature)(s, teacher, regions, valid), [student], others=[teacher])


@examples
@given(pairs(same_width=True), TEMPERATURES, st.booleans(), st.booleans(), SHARES)
def test_logits_kd_is_finite(pair, temperature, rescale, regions, share):
    student, teacher = (one.tensor() for one in pair)
    valid, loss = some(student.shape, share), LogitsKDLoss(temperature, rescale)
    check(lambda s: loss(s, teacher, regions, valid), [student], others=[teacher])


@examples
@given(
    pairs(),
    st.sampled_from([1e-12, 1e-8, 1e-3]),
    st.sampled_from(["some", "all", "none", "one voxel"]),
    st.integers(1, 4),
    st.tuples(*[st.sampled_from([0, 0, 1, 3])] * 3),
    st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
    st.sampled_from([None, 0, 2]),
)
def test_ifvd_is_finite(pair, eps, which, numbers, finer, dtype, absent):
    student, teacher = (one.tensor() for one in pair)
    grid = [length + more for length, more in zip(student.shape[2:], finer, strict=False)]
    classes = torch.randint(-1 if which == "some" else 0, numbers, (len(student), *grid), generator=generator(0))
    if which == "none":
        classes.fill_(-1)
    if which == "one voxel":
        classes.fill_(0).flatten()[0] = numbers - 1
    classes = classes.to(dtype)
    number = None if absent is None else numbers + absent
    check(lambda s: IFVDLoss(eps)(s, teacher, classes=classes, num_classes=number), [student], others=[teacher])


@fewer_examples
@given(pairs(), st.sampled_from([(25.0, 50.0), (1, 0), (0, 2.0)]), st.integers(1, 4))
def test_rkd_is_finite(pair, weights, parts):
    student, teacher = (one.tensor() for one in pair)
    embeddings = len(student)
    for side in student.shape[2:]:
        embeddings *= min(side, parts)
    loss = RKDLoss(*weights, parts)
    if embeddings < 3:
        finite_or_refused(loss, student, teacher)
    else:
        check(lambda s: loss(s, teacher), [student], others=[teacher])


@fewer_examples
@given(pairs(), st.integers(1, 4), st.sampled_from([None, 1, 2, 5]), st.sampled_from(["max", "average"]), st.booleans())
def test_skd_is_finite(pair, window, nodes, pooling, detached):
    student, teacher = (one.tensor() for one in pair)
    check(lambda s: SKDLoss(window, nodes, pooling, detached)(s, teacher), [student], others=[teacher])


@fewer_examples
@given(
    pairs(),
    st.sampled_from([0.001, 0.1, 1000]),
    st.sampled_from([(0.1, 0.1), (1, 0), (0, 2.0), (0, 0)]),
    st.integers(1, 9),
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 20)),
    st.sampled_from(["some", "all", "none"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_cirkd_is_finite(pair, temperature, weights, grid, sizes, which, numbers, single):
    student, teacher = (one.tensor() for one in pair)
    options = dict(zip(("pixel_memory", "region_memory", "pixels"), sizes, strict=True))
    loss = CIRKDLoss(temperature, *weights, grid, **options, pixel_contrasts=5, region_contrasts=2)
    torch.manual_seed(0)
    adapter = loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2, numbers)
    adapter.to(torch.float32 if single else precise(*pair))
    classes = torch.randint(-1 if which == "some" else 0, numbers, (len(student), *student.shape[2:]))
    classes = torch.full_like(classes, -1) if which == "none" else classes
    start = [buffer.clone() for buffer in adapter.buffers()]

    def value(student):
        torch.manual_seed(1)
        for buffer, before in zip(adapter.buffers(), start, strict=True):
            buffer.copy_(before)
        return loss(student, teacher, adapter, classes=classes, num_classes=numbers)

    check(value, [student], parameters_of(adapter), [teacher])
    assert all(buffer.isfinite().all() for buffer in adapter.buffers())


@examples
@given(pairs(), st.integers(1, 5), SHARES, st.sampled_from([0, 0.5]), st.integers(0, 3), st.booleans())
def test_dprd_is_finite(pair, width, share, length_weight, memory, single):
    loss = DPRDLoss(width, length_weight=length_weight, memory=memory)
    student, teacher = (one.tensor() for one in pair)
    torch.manual_seed(0)
    adapter = loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2, grid=student.shape[2:])
    adapter = adapter.to(torch.float32 if single else precise(*pair))
    foreground = some(student.shape, share)

    def value(features):
        if adapter.recent is not None:
            adapter.recent.count.zero_()  # the same loss for every call
        return loss(features, teacher, adapter, foreground=foreground)

    check(value, [student], parameters_of(adapter), [teacher])


@fewer_examples
@given(pairs(), st.integers(1, 4), SHARES, st.booleans(), st.sampled_from([0.001, 0.5, 1000]), st.booleans())
def test_reco_kd_is_finite(pair, numbers, share, regions, temperature, single):
    loss = ReCoKDLoss(temperature)
    student, teacher = (one.tensor() for one in pair)
    torch.manual_seed(0)
    adapter = loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2)
    for block in (adapter.student, adapter.teacher):
        nn.init.normal_(block.transform[3].weight)  # it starts at 0, and hides all behind it
    adapter = adapter.to(torch.float32 if single else precise(*pair))
    shape = (len(student), numbers if regions else 1, *student.shape[2:])
    target = torch.randint(0, 2 if regions else numbers, shape, generator=generator(0))
    options = {"target": target, "regions": regions, "valid": some(student.shape, share), "num_classes": numbers}
    check(lambda s: loss(s, teacher, adapter, **options), [student], parameters_of(adapter), [teacher], squares=True)


@st.composite
def scores(draw):
    return draw(maps((draw(BATCHES), draw(st.integers(2, 6)), *draw(GRIDS[draw(DIMS)]))))


@examples
@given(
    scores(),
    st.sampled_from([0, 0.01, 0.3, 1, 1.5, 2.0, 5]),
    st.sampled_from([None, 0.01, 0.25, 0.9]),
    st.sampled_from([1e-12, 1e-5, 1.0]),
    st.booleans(),
    st.booleans(),
    SHARES,
    st.sampled_from([0, 0.01, 0.5, 1]),
    st.sampled_from([torch.int16, torch.int64, torch.float32]),
    st.sampled_from([-1, 0, 255]),
)
def test_focal_dice_is_finite(made_from, gamma, alpha, smooth, batch_dice, regions, share, present, dtype, ignored):
    loss, logits = FocalDiceLoss(gamma, alpha, smooth, batch_dice), made_from.tensor()
    valid = some(logits.shape, share)
    shape = (len(logits), logits.shape[1] if regions else 1, *logits.shape[2:])
    target = torch.randint(0, 2 if regions else logits.shape[1], shape, generator=generator(1))
    target[torch.rand(shape, generator=generator(2)) >= present] = 0
    if valid is not None:
        target[~valid.expand(shape)] = ignored
    target = target.to(dtype)
    check(lambda z: loss(z, target, regions, valid), [logits])


@st.composite
def networks(draw):
    """Encoder and decoder levels, on grids that need not become coarser."""
    dim, batch = draw(DIMS), draw(BATCHES)
    level = st.tuples(CHANNELS, GRIDS[dim]).flatmap(lambda one: maps((batch, one[0], *one[1])))
    return [draw(st.lists(level, min_size=1, max_size=3)) for _ in range(2)]


@fewer_examples
@given(networks(), st.sampled_from([(1.0, 0.5), (1, 0), (0, 2.0)]), st.booleans())
def test_dual_self_distillation_is_finite(network, weights, single):
    loss = DualSelfLoss(*weights)
    encoder, decoder = ([level.tensor() for level in levels] for levels in network)
    torch.manual_seed(0)
    widths = [[level.shape[1] for level in levels] for levels in (encoder, decoder)]
    adapters = loss.adapters(*widths, encoder[0].ndim - 2).to(torch.float32 if single else precise(*encoder, *decoder))

    def value(*levels):
        return loss(levels[: len(encoder)], levels[len(encoder) :], adapters)

    check(value, [*encoder, *decoder], list(adapters.parameters()), squares=True)


@st.composite
def embeddings(draw):
    shape = (draw(BATCHES), draw(st.integers(3, 6)), draw(st.integers(8, 9)), draw(st.integers(8, 9)))
    return draw(maps(shape)), draw(maps(shape))


@fewer_examples
@given(embeddings())
def test_the_perceptual_loss_is_finite(pair):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    loss = PerceptualLoss(nn.Sequential(*layers), (1, 4))
    student, teacher = (one.tensor() for one in pair)
    check(lambda s: loss(s, teacher), [student], others=[teacher], squares=True)


def finite_or_refused(function, *arguments, **keywords):
    """The result is finite after all, or there is one sentence, of this package and no other."""
    try:
        value = function(*arguments, **keywords)
    except ValueError as error:
        sentence = str(error)
        assert type(error) is ValueError and sentence and "\n" not in sentence and "zip()" not in sentence
        assert traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE), sentence
    else:
        assert all(one.isfinite().all() for one in (value if isinstance(value, tuple) else (value,)))


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
