"""Whatever tensors a loss is given, it is finite with finite gradients, or says in one sentence what is wrong.

Tensors of every kind a training could come to: any small grid, odd, even and shorter than a wavelet's filter, the
four floating types, nothing but zeros or constants, dead voxels, numbers as small as 1e-30 and as large as 1e30.
"""

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
from tests.losses.any_maps import (
    BATCHES,
    CHANNELS,
    DIMS,
    GRIDS,
    SHARES,
    TEMPERATURES,
    WAVELETS,
    check,
    examples,
    fewer_examples,
    finite_or_refused,
    generator,
    maps,
    pairs,
    parameters_of,
    precise,
    some,
    stage,
)


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
