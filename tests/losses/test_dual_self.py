import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.losses import DualSelfLoss
from nnunet_kd.losses.features import energy
from nnunet_kd.losses.resizing import resized_errors
from tests.losses.random_maps import random_maps

# Grids of the encoder's levels, finest first; the decoder has all but the last.
NETWORKS = [
    [(12, 9, 15), (6, 5, 8), (3, 3, 4)],
    [(4, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 2)],  # anisotropic, as nnU-Net's for thick slices
    [(20, 33), (10, 17), (5, 9), (3, 5)],
    [(7, 6), (4, 3)],
]
every_network = pytest.mark.parametrize("grids", NETWORKS, ids=str)


def levels_of(grids, dtype=torch.float64, seed=0):
    """Encoder and decoder features, widths 3, 5, 7, ..."""
    maps = [random_maps(grid, 3 + 2 * level, seed + level, dtype) for level, grid in enumerate(grids)]
    return maps, [random_maps(grid, 3 + 2 * level, 50 + seed + level, dtype) for level, grid in enumerate(grids[:-1])]


def adapters_of(loss, grids, dtype=torch.float64):
    torch.manual_seed(0)
    widths = [3 + 2 * level for level in range(len(grids))]
    return loss.adapters(widths, widths[:-1], len(grids[0])).to(dtype)


def convolved(features, convolution):
    """A 1x1 convolution, channel by channel."""
    weight = convolution.weight.flatten(1)
    maps = []
    for out in range(weight.shape[0]):
        one = sum(weight[out, channel] * features[:, channel] for channel in range(weight.shape[1]))
        maps.append(one + convolution.bias[out])
    return torch.stack(maps, 1)


def resized(features, shape):
    """Linear interpolation between the centres of cells, sample by sample along every axis in turn."""
    for axis, length in enumerate(shape, 2):
        before = features.shape[axis]
        samples = []
        for i in range(length):
            place = min(max((i + 0.5) * before / length - 0.5, 0), before - 1)
            low = min(int(place), before - 1)
            high = min(low + 1, before - 1)
            part = place - low
            samples.append((1 - part) * features.select(axis, low) + part * features.select(axis, high))
        features = torch.stack(samples, axis)
    return features


def distill(one, other):
    """Mean squared error, image by image and channel by channel."""
    total, count = 0.0, 0
    for image in range(one.shape[0]):
        for channel in range(one.shape[1]):
            difference = one[image, channel] - other[image, channel]
            total, count = total + float((difference**2).sum()), count + difference.numel()
    return total / count


def literal(encoder, decoder, adapters, alpha, beta):
    """Eq. 2 and 3 and their weights in eq. 5; resized first and convolved then, as printed in eq. 2."""
    target, projection, progressive = decoder[0], 0.0, 0.0
    for level, features in enumerate(encoder):
        at_the_target = convolved(resized(features, target.shape[2:]), adapters.encoder[level])
        projection += distill(at_the_target, target)
    for level, features in enumerate(decoder[1:]):
        at_the_target = convolved(resized(features, target.shape[2:]), adapters.decoder[level])
        projection += distill(at_the_target, target)
    for level in range(1, len(encoder)):
        deeper = resized(convolved(encoder[level], adapters.encoder_steps[level - 1]), encoder[level - 1].shape[2:])
        progressive += distill(encoder[level - 1], deeper)
    for level in range(1, len(decoder)):
        deeper = resized(convolved(decoder[level], adapters.decoder_steps[level - 1]), decoder[level - 1].shape[2:])
        progressive += distill(deeper, decoder[level - 1])
    return alpha * projection + beta * progressive


@every_network
@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, 0.0), (0.0, 0.5), (0.3, 2.0)])
def test_equals_the_literal_equations(grids, weights):
    encoder, decoder = levels_of(grids)
    complete = adapters_of(DualSelfLoss(), grids)
    loss = DualSelfLoss(*weights)
    with torch.no_grad():
        expected = literal(encoder, decoder, complete, *weights)
    assert loss(encoder, decoder, complete).item() == pytest.approx(expected, rel=1e-12)
    single = loss([level.float() for level in encoder], [level.float() for level in decoder], complete.float())
    assert single.item() == pytest.approx(expected, rel=1e-6)


def projected(features, projection):
    """Lin of eq. 2 as one matrix over all pixels, the product of the matrices of the axes."""
    matrix = torch.ones(1, 1, dtype=features.dtype)
    for one in projection.matrices:
        products = matrix[:, None, :, None] * one.to(features.dtype)[None, :, None, :]
        matrix = products.flatten(2).flatten(0, 1)
    return (features.flatten(2) @ matrix.T).unflatten(2, [len(one) for one in projection.matrices])


@every_network
def test_a_learned_projection_takes_the_place_of_resizing(grids):
    encoder, decoder = levels_of(grids)
    widths = [3 + 2 * level for level in range(len(grids))]
    loss = DualSelfLoss(1.0, 0.5, resizing="learned")
    torch.manual_seed(0)
    adapters = loss.adapters(widths, widths[:-1], len(grids[0]), grids).double()
    assert len(adapters.resizing) == 2 * len(grids) - 2
    usual = adapters_of(DualSelfLoss(), grids)
    at_first = loss(encoder, decoder, adapters).item()  # the same convolutions, which do not depend on the resizing
    assert at_first == pytest.approx(DualSelfLoss()(encoder, decoder, usual).item(), rel=1e-6)
    with torch.no_grad():
        for matrix in adapters.resizing.parameters():
            matrix += 0.3 * torch.randn_like(matrix)
        expected = 0.0
        for number, level in enumerate((*encoder, *decoder[1:])):
            convolution = [*adapters.encoder, *adapters.decoder][number]
            expected += distill(convolved(projected(level, adapters.resizing[number]), convolution), decoder[0])
        usual.load_state_dict({name: value for name, value in adapters.state_dict().items() if "resizing" not in name})
        expected += DualSelfLoss(0, 0.5)(encoder, decoder, usual).item()
    value = loss(encoder, decoder, adapters)
    assert value.item() == pytest.approx(expected, rel=1e-10) and value.item() > 1.01 * at_first
    value.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters.parameters())


def test_errors_of_a_learned_projection():
    grids = [(8, 8), (4, 4)]
    encoder, decoder = levels_of(grids)
    learned = DualSelfLoss(resizing="learned")
    adapters = learned.adapters([3, 5], [3], 2, grids).double()
    with pytest.raises(ValueError, match=r"the projection is for features on \(8, 8\), got \(9, 8\)"):
        learned([random_maps((9, 8), 3, 0), encoder[1]], [random_maps((9, 8), 3, 1)], adapters)
    with pytest.raises(ValueError, match="the adapters were made for another resizing than 'linear'"):
        DualSelfLoss()(encoder, decoder, adapters)
    with pytest.raises(ValueError, match="a learned resizing needs the sizes of the grids"):
        learned.adapters([3, 5], [3], 2)
    with pytest.raises(ValueError, match="resizing must be 'linear' or 'learned', got 'nearest'"):
        DualSelfLoss(resizing="nearest")
    with pytest.raises(ValueError, match="resizing is learned for the projection, which alpha 0 leaves out"):
        DualSelfLoss(alpha=0, resizing="learned")


def agreeing_network():
    """Levels and convolutions with which all projected levels are the last decoder level."""
    grids = [(8, 8), (4, 4), (2, 2)]
    encoder, decoder = levels_of(grids)
    loss = DualSelfLoss()
    adapters = adapters_of(loss, grids)
    constant = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    for level in (*encoder, *decoder):
        level.zero_()[:, :3] = constant.view(1, 3, 1, 1)
    for convolution in adapters.modules():
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.dirac_(convolution.weight)
            torch.nn.init.zeros_(convolution.bias)
    return loss, encoder, decoder, adapters


def test_zero_when_all_projected_levels_agree():
    loss, encoder, decoder, adapters = agreeing_network()
    assert abs(loss(encoder, decoder, adapters).item()) < 1e-14
    for levels in (encoder, decoder):
        for level in levels:
            level[0, 0, 0, 0] += 0.1
            assert loss(encoder, decoder, adapters).item() > 1e-6
            level[0, 0, 0, 0] -= 0.1


def test_zero_for_levels_that_vary():
    """Coarse levels that, resized, are the finest ones: nothing is left but rounding, in single precision too."""
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        coarse = random_maps((3, 4, 5), 2, 0, dtype)
        target = F.interpolate(coarse, (12, 9, 20), mode="trilinear")
        assert abs(resized_errors([coarse, target, coarse], target).item()) < limit


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 0.5), (1.0, 0.5)])
def test_no_gradient_reaches_a_teaching_level_through_its_target(weights):
    """The gradient of every level is that of the pairs in which it learns, the others' inputs held fixed."""
    grids = NETWORKS[0]
    alpha, beta = weights
    encoder, decoder = levels_of(grids)
    loss = DualSelfLoss(*weights)
    adapters = adapters_of(loss, grids)
    for level in (*encoder, *decoder):
        level.requires_grad_()
    loss(encoder, decoder, adapters).backward()
    assert decoder[0].grad is None  # it teaches in both parts
    fixed = [[level.detach() for level in levels] for levels in (encoder, decoder)]
    for levels, number in ((0, 0), (0, 1), (0, 2), (1, 1)):
        learner = fixed[levels][number].clone().requires_grad_()
        value = torch.zeros((), dtype=torch.float64)
        if alpha:
            adapter = adapters.encoder[number] if levels == 0 else adapters.decoder[number - 1]
            value = value + alpha * resized_errors([adapter(learner)], fixed[1][0])
        if beta and levels == 0 and number < 2:  # the deeper encoder level teaches
            value = value + beta * resized_errors([adapters.encoder_steps[number](fixed[0][number + 1])], learner)
        if beta and levels == 1:  # the finer decoder level teaches
            value = value + beta * resized_errors([adapters.decoder_steps[number - 1](learner)], fixed[1][number - 1])
        given = (encoder, decoder)[levels][number].grad
        if value.requires_grad and value.grad_fn is not None:
            (expected,) = torch.autograd.grad(value, learner, allow_unused=True)
            if expected is None:
                assert given is None
                continue
            torch.testing.assert_close(given, expected)
        else:
            assert given is None
    deepest = encoder[2].grad
    assert (deepest is None) == (not alpha)  # it only teaches in the progressive part


def test_every_convolution_learns():
    grids = NETWORKS[2]
    encoder, decoder = levels_of(grids)
    loss = DualSelfLoss()
    adapters = adapters_of(loss, grids)
    loss(encoder, decoder, adapters).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters.parameters())


def test_a_part_without_weight_has_no_adapters():
    count = lambda *weights: [  # noqa: E731
        len(part) for part in DualSelfLoss(*weights).adapters([4, 8, 16], [4, 8], 3).children()
    ]
    assert count(1, 0.5) == [3, 1, 2, 1, 0]
    assert count(1, 0) == [3, 1, 0, 0, 0]
    assert count(0, 1) == [0, 0, 2, 1, 0]


@pytest.mark.parametrize("grids", [[(4, 3, 2), (2, 2, 1)], [(5, 4), (3, 2)]], ids=str)
def test_gradcheck(grids):
    encoder, decoder = levels_of(grids)
    loss = DualSelfLoss()
    adapters = adapters_of(loss, grids)
    coarse = random_maps(grids[1], 3, 9).requires_grad_()
    target = random_maps(grids[0], 3, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: resized_errors([x, t * 2, x], t), (coarse, target))

    def of_convolutions(*parameters):
        named = dict(zip([name for name, _ in adapters.named_parameters()], parameters, strict=True))
        return torch.func.functional_call(Wrapped(loss, adapters), {f"adapters.{n}": p for n, p in named.items()}, ())

    class Wrapped(torch.nn.Module):
        def __init__(self, loss, adapters):
            super().__init__()
            self.loss, self.adapters = loss, adapters

        def forward(self):
            return self.loss(encoder, decoder, self.adapters)

    assert torch.autograd.gradcheck(of_convolutions, tuple(adapters.parameters()))


@pytest.mark.parametrize("resizing", ["linear", "learned"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_levels_are_compared_in_single_precision(dtype, resizing):
    grids = NETWORKS[0]
    encoder, decoder = levels_of(grids, dtype)
    loss = DualSelfLoss(resizing=resizing)
    adapters = loss.adapters([3, 5, 7], [3, 5], 3, grids)
    encoder[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(encoder, decoder, adapters)
    value.backward()
    assert value.dtype == torch.float32 and encoder[0].grad.dtype == dtype
    expected = loss([e.detach().float() for e in encoder], [d.float() for d in decoder], adapters)
    torch.testing.assert_close(value.detach(), expected.detach())


def test_sums_of_squares_are_exact_for_large_maps():
    """One float32 sum over so many numbers is wrong in the fourth digit."""
    maps = torch.randn(1, 32, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    assert energy(maps).item() == pytest.approx(maps.double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0, 1])
def test_single_levels_have_no_neighbours(alpha):
    encoder, decoder = random_maps((4, 5), 2, 0).requires_grad_(), random_maps((4, 5), 3, 1)
    adapters = DualSelfLoss(alpha, 1).adapters([2], [3], 2).double()
    value = DualSelfLoss(alpha, 1)([encoder], [decoder], adapters)
    value.backward()
    expected = (adapters.encoder[0](encoder) - decoder).square().mean() if alpha else torch.zeros(()).double()
    torch.testing.assert_close(value, expected)


def test_squares_beyond_float32_are_infinite():
    """Not infinity less infinity."""
    coarse, target = random_maps((2, 3), 2, 0, torch.float32), random_maps((5, 4), 2, 1, torch.float32)
    assert resized_errors([coarse], 1e30 * target) == float("inf")
    assert resized_errors([1e30 * coarse], target) == float("inf")


def test_adapters_of_another_type_are_used_in_that_of_the_features():
    encoder, decoder = levels_of(NETWORKS[3])
    adapters = adapters_of(DualSelfLoss(), NETWORKS[3], torch.float32)
    value = DualSelfLoss()(encoder, decoder, adapters)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, DualSelfLoss()(encoder, decoder, adapters.double()))


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [
        (-1, 0.5, "alpha must be a number of at least 0, got -1"),
        (1, "0.5", "beta must be a number of at least 0, got '0.5'"),
        (0, 0, "alpha and beta are both 0: nothing is distilled"),
    ],
)
def test_option_errors(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        DualSelfLoss(alpha, beta)


def test_input_errors():
    grids = [(8, 8), (4, 4)]
    encoder, decoder = levels_of(grids)
    loss = DualSelfLoss()
    adapters = adapters_of(loss, grids)
    with pytest.raises(ValueError, match="features of both encoder and decoder are needed"):
        loss(encoder, [], adapters)
    with pytest.raises(ValueError, match=r"expected encoder level 1 \(B, C, \*spatial\) in 2-D or 3-D, got \(2, 3\)"):
        loss([torch.zeros(2, 3), encoder[1]], decoder, adapters)
    with pytest.raises(ValueError, match=r"encoder level 2 is \(1, 5, 4, 4\): batch or number of axes is not that"):
        loss([encoder[0], encoder[1][:1]], decoder, adapters)


def test_adapters_of_another_network_are_refused():
    encoder, decoder = levels_of([(8, 8), (4, 4)])
    message = r"encoder widths \[3, 4\], decoder widths \[3\] in 2-D, the features have \[3, 5\], \[3\] in 2-D"
    with pytest.raises(ValueError, match=message):
        DualSelfLoss()(encoder, decoder, DualSelfLoss().adapters([3, 4], [3], 2))
    with pytest.raises(ValueError, match=r"the features have \[3\], \[3\] in 2-D"):
        DualSelfLoss()(encoder[:1], decoder, DualSelfLoss().adapters([3, 5], [3], 2))
    with pytest.raises(ValueError, match="the adapters lack a part of alpha 1 and beta 0.5"):
        DualSelfLoss()(encoder, decoder, DualSelfLoss(1, 0).adapters([3, 5], [3], 2))
