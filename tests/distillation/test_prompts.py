"""Prompts of large features are tuned case by case, to the same values and gradients as those of small ones."""

import torch

from nnunet_kd.distillation.methods import FREEKD
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.losses import chunks
from nnunet_kd.networks.stages import EncoderStages

STAGES = EncoderStages((4, 6), ((1, 1, 1), (2, 2, 2)))


class Decoder:
    """A decoder without weights."""

    def decode(self, features):
        return sum(stage.square().mean() for stage in features)


def test_large_features_are_prompted_case_by_case(monkeypatch):
    torch.manual_seed(0)
    term = FREEKD.build(10)
    adapters = term.adapters(STAGES, STAGES)
    features = [torch.randn(3, 4, 8, 8, 8), torch.randn(3, 6, 4, 4, 4)]
    step = TrainStep([], [], [], [], features, [(0, 0), (1, 1)], [None], None, Decoder(), lambda logits, _: logits)

    def tuned():
        prompts = [parameter for adapter in adapters for parameter in adapter.prompts.parameters()]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
            value = term.tune(step, adapters)
        return value.detach(), torch.autograd.grad(value, prompts), sum(kept)

    *expected, kept_then = tuned()
    monkeypatch.setattr(chunks, "LARGE", features[0].numel())  # the finer stage alone
    *ours, kept_now = tuned()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)
    assert kept_now < 0.65 * kept_then
