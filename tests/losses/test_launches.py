"""How many kernels the losses on wavelet bands launch, and how much memory these read and write, at nnU-Net's sizes."""

import pytest
import torch

from benchmarks.launches import Launches, Sizes, count

SIZES = Sizes(patch=(128, 128, 128), batch=2, reduction=4)


@pytest.mark.parametrize(
    ("method", "kernels", "gigabytes"),
    [("DCD", 400, 12.0), ("FreeKD", 480, 15.5), ("FreeKD, tuning", 740, 24.0)],
)
def test_kernels_and_traffic_stay_low(method, kernels, gigabytes):
    launches = count(method, SIZES)
    print(f"{method}: {launches.count} kernels, {launches.gigabytes:.2f} GB")
    assert kernels / 2 < launches.count <= kernels
    assert gigabytes / 2 < launches.gigabytes <= gigabytes


def test_views_and_allocations_are_no_kernels():
    x = torch.ones(2, 3, 4)
    with Launches() as launches:
        torch.empty(5)
        x.transpose(1, 2)[0].t().view(12).detach()
    assert launches.count == launches.read == launches.written == 0


def test_every_element_is_read_and_written_once():
    x, y = torch.ones(2, 3), torch.ones(3)
    with Launches() as launches:
        x.add_(y.expand(2, 3))
        torch.mm(x, x.t(), out=torch.empty(2, 2))
        torch.empty(2, 3, dtype=torch.float16).copy_(x)
    assert launches.kernels == {"add_": 1, "mm": 1, "copy_": 1}
    assert (launches.read, launches.written) == (4 * (6 + 3) + 4 * (6 + 6) + 4 * 6, 4 * 6 + 4 * 4 + 2 * 6)
