"""nnU-Net's predictor in the precision of ours."""

from functools import partial

import pytest
import torch
from nnunetv2.inference import predict_from_raw_data


@pytest.fixture
def single_precision(monkeypatch):
    """Let nnU-Net's predictor sum in single precision, as ours does.

    In half precision, its weights vanish in the corners of a patch, which then have no logits to compare with.
    """
    original = predict_from_raw_data.compute_gaussian
    exact = partial(original, dtype=torch.float32)
    exact.cache_clear = original.cache_clear
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", exact)
    monkeypatch.setattr(torch, "half", torch.float32)
