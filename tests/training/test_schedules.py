import pytest
import torch

from nnunet_kd.training.schedules import PlateauSchedule


@pytest.mark.parametrize("first", [3.0, -0.9])
def test_any_lower_loss_ends_a_plateau(first):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = PlateauSchedule(optimizer, patience=2)
    for epoch in range(3):
        schedule.observe(first + 5e-5 * epoch)
    assert optimizer.param_groups[0]["lr"] == 1.0
    schedule.observe(first + 2e-4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    schedule.observe(first - 1e-6)  # lower, if only slightly
    schedule.observe(first)
    schedule.observe(first)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
