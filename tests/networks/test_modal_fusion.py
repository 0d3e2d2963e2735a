import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_kd.networks.modal_fusion import DynamicModalFusion
from tests.networks.small_brainseg_dmif import random_images


def fusion(**dims):
    torch.manual_seed(0)
    return DynamicModalFusion(8, **dims).double()


def literal_fusion(module, features):
    """Compute eq. 1-7 token by token for features (M, D)."""
    number = len(features)
    mean = sum(features) / number
    one = [module.own.weight @ f + module.own.bias + module.mean.weight @ mean for f in features]
    one = [
        (f - f.mean()) / (f.var(unbiased=False) + module.norm.eps).sqrt() * module.norm.weight + module.norm.bias
        for f in one
    ]
    two = [module.remap.weight @ (f * (1 + torch.erf(f / math.sqrt(2))) / 2) + module.remap.bias for f in one]
    scores = [module.importance(f).exp() for f in two]
    weights = [score / sum(scores) for score in scores]
    gathered = sum(f * weight for f, weight in zip(two, weights, strict=True))
    branch = sum(F.gelu(module.branch_in.weight @ f + module.branch_in.bias) for f in features) / number
    return gathered + module.branch_out.weight @ branch + module.branch_out.bias + mean


@pytest.mark.parametrize("modalities", [1, 2, 5])
def test_fusion_is_equations_1_to_7(modalities):
    module, features = fusion(), random_images(2, modalities, 3, 8, dtype=torch.float64)
    expected = torch.stack([torch.stack([literal_fusion(module, one[:, n]) for n in range(3)]) for one in features])
    torch.testing.assert_close(module(features), expected)


def test_shapes_within_the_fusion():
    module, features = fusion(interaction_dim=6, bottleneck_dim=5), random_images(2, 4, 3, 5, 8, dtype=torch.float64)
    interacted = module.interact(features)
    assert interacted.shape == module.weights(interacted).shape == (2, 4, 3, 5, 8)
    assert module.enhance(features).shape == module(features).shape == (2, 3, 5, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_over_modalities_sum_to_one(dtype):
    module = fusion().to(dtype)
    weights = module.weights(50 * random_images(2, 4, 7, 8, dtype=dtype))
    assert weights.dtype == torch.promote_types(dtype, torch.float32) and weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


def test_fusion_does_not_depend_on_the_order_of_modalities():
    module, features = fusion(), random_images(2, 4, 3, 8, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module.interact(features[:, order]), module.interact(features)[:, order])
    torch.testing.assert_close(module(features[:, order]), module(features))
    other = features.clone()
    other[:, 3] += 1
    difference = (module.interact(other) - module.interact(features)).abs().amax((0, 2, 3))
    assert (difference > 1e-3).all()  # a change in one modality reaches all others
