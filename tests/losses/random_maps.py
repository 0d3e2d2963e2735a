"""Random features, logits and masks for the tests of all losses."""

import torch

SHAPES = [(12, 9, 15), (10, 14, 10), (5, 7, 5), (4, 4, 4), (1, 8, 9), (33, 20), (7, 6)]


def random_maps(shape, channels, seed, dtype=torch.float64, batch=2):
    """``(batch, channels, *shape)``, the same for the same seed."""
    return torch.randn(batch, channels, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_valid(shape, seed=0, batch=2):
    """``(batch, 1, *shape)``, about two thirds of them true."""
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(seed)) < 0.66
