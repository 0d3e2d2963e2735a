"""Steps whose gradients are not finite."""

import pytest
import torch

from nnunet_kd.training.faults import SKIPPED, SkippedSteps
from nnunet_kd.training.resumable import ResumableTrainer


@pytest.mark.parametrize("scaled", [True, False], ids=["as under AMP", "without a scaler"])
@pytest.mark.parametrize("size", [1.0, 1e25])
def test_a_step_whose_norm_overflows_is_skipped(scaled, size):
    """The gradients are finite, but clipping by their infinite norm would leave zeros, and weights would decay."""
    trainer = object.__new__(ResumableTrainer)  # nnU-Net's constructor needs a data set
    trainer.network = torch.nn.Linear(4, 1)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.1, weight_decay=0.5)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0) if scaled else None
    trainer._skipped = SkippedSteps()
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    total = size * trainer.network(torch.ones(1, 4)).sum()
    numbers = trainer.optimize(total, {"loss": total})
    assert all(torch.isfinite(parameter.grad).all() for parameter in trainer.network.parameters())
    moved = [not torch.equal(*pair) for pair in zip(before, trainer.network.parameters(), strict=True)]
    skipped = size > 1
    assert moved == [not skipped] * 2 and numbers[SKIPPED] == skipped
