import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd.pruning.moments import Moments, draw, in_double


@pytest.mark.parametrize("count", [10, 1000, 2**20, 2**22])
def test_positions_are_drawn_from_the_whole_range(count):
    drawn = draw(count, 500, torch.Generator().manual_seed(1))
    assert len(drawn) == min(count, 500) and drawn.min() >= 0 and drawn.max() < count
    assert len(drawn.unique()) >= 0.99 * len(drawn)
    assert abs(float(drawn.double().mean()) / count - 0.5) < 0.06
    assert torch.equal(drawn, draw(count, 500, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("device", "where"), [("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_float64_is_computed_on_a_device_that_supports_it(device, where):
    with FakeTensorMode():
        double = in_double(torch.empty(2, 3, device=device))
    assert double.dtype == torch.float64 and double.device.type == where


def test_moments_accumulate_over_batches():
    rows = 3 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.randint(1, 4, (50,), generator=torch.Generator().manual_seed(1))
    weighted, repeated = Moments(), Moments()
    for part in torch.arange(50).split(20):
        weighted.add(rows[part], counts[part].float())
        repeated.add(rows[part].repeat_interleave(counts[part], 0))
    everything = rows.double().repeat_interleave(counts, 0)
    covariance = torch.cov(everything.T, correction=0)
    for moments in (weighted, repeated):
        torch.testing.assert_close(moments.mean, everything.mean(0))
        torch.testing.assert_close(moments.covariance, covariance)
        torch.testing.assert_close(moments.scatter, covariance * len(everything))
