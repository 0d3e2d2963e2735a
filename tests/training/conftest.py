from functools import partial

import pytest
import segment_anything
import torch

from tests.small_networks import tiny_sam


@pytest.fixture
def sam(tmp_path, monkeypatch):
    """File with the weights of a tiny SAM that segment_anything knows as 'tiny'."""
    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", partial(tiny_sam, image_size=128))
    torch.manual_seed(0)
    path = tmp_path / "sam.pth"
    torch.save(tiny_sam(image_size=128).state_dict(), path)
    return path
