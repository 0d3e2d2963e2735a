"""Losses of large tensors equal those of small ones, whose voxels are summed at once."""

import pytest
import torch

from nnunet_kd.losses import CWDLoss, DualSelfLoss, LogitsKDLoss, chunks


@pytest.fixture
def small_chunks(monkeypatch):
    """Let tensors of a test count as large once it calls the function."""

    def shrink():
        monkeypatch.setattr(chunks, "LARGE", 1)
        monkeypatch.setattr(chunks, "CHUNK", 300)

    return shrink


def value_and_gradients(loss, inputs):
    inputs = [one.clone().requires_grad_() for one in inputs]
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


def compare(before, after):
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=0)
    for ours, expected in zip(after[1], before[1], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_logits(small_chunks, regions, masked):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 9, 5, 6, generator=generator)
    valid = torch.rand(2, 1, 9, 5, 6, generator=generator) > 0.3 if masked else None

    def loss(logits):
        return LogitsKDLoss()(logits, teacher, regions, valid)

    before = value_and_gradients(loss, [student])
    small_chunks()
    compare(before, value_and_gradients(loss, [student]))


@pytest.mark.parametrize("voxels", ["all", "some", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cwd(small_chunks, voxels, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 9, 5, 6, generator=generator).to(dtype)
    share = {"all": 1.1, "some": 0.5, "none": 0.0}[voxels]
    valid = None if voxels == "all" else torch.rand(2, 1, 9, 5, 6, generator=generator) < share

    def loss(logits):
        return CWDLoss()(logits, teacher, valid=valid)

    value, (gradient,) = value_and_gradients(loss, [student])
    small_chunks()
    ours, (found,) = value_and_gradients(loss, [student])
    torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found, gradient, rtol=1e-5 if dtype == torch.float32 else 2e-3, atol=1e-7)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_dual_self(small_chunks, dtype, rounding):
    """Features in half precision are taken to float32 chunk by chunk, and so are the gradients of the chunks."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 9, 8, 6), (2, 6, 5, 4, 3), (2, 8, 3, 2, 2)]
    levels = [torch.randn(shape, generator=generator).to(dtype) for shape in (*shapes, *shapes[:2])]
    loss = DualSelfLoss()
    torch.manual_seed(0)
    adapters = loss.adapters([4, 6, 8], [4, 6], 3)

    def together():
        features = [level.clone().requires_grad_() for level in levels]
        value = loss(features[:3], features[3:], adapters)
        del features[3]  # the last decoder level teaches and has no gradient
        return value.detach(), torch.autograd.grad(value, [*features, *adapters.parameters()])

    before = together()
    small_chunks()
    after = together()
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=0)
    for ours, expected in zip(after[1], before[1], strict=True):
        assert ours.dtype == expected.dtype
        assert (ours - expected).abs().max() <= rounding * expected.abs().max()


def test_dual_self_with_levels_beyond_single_precision(small_chunks):
    """The energy of the finest level overflows, and the loss says so instead of taking its parts for it."""
    small_chunks()
    levels = [1e25 * torch.ones(1, 2, 8, 4, 4), torch.ones(1, 2, 4, 2, 2)]
    loss = DualSelfLoss()
    assert loss(levels, levels, loss.adapters([2, 2], [2, 2], 3)) == float("inf")


def test_only_inputs_are_kept_for_the_gradient(small_chunks):
    small_chunks()
    kept = []
    maps = torch.randn(1, 3, 40, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda one: one
    ):
        chunks.sum_over_chunks(lambda one: one.exp().square().sum(), [maps]).backward()
    assert max(kept[1:]) <= 2 * 3 * 8 * 8 and kept[0] == maps.numel()
