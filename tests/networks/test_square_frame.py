import pytest
import torch

from nnunet_kd.networks.square_frame import from_square, to_square
from tests.networks.small_brainseg_dmif import random_images


@pytest.mark.parametrize("size", [(32, 32), (20, 28), (7, 31), (64, 64), (64, 32), (45, 33)], ids=str)
def test_images_are_padded_or_shrunk_and_logits_resized_back(size):
    images = random_images(1, 2, *size)
    square = to_square(images, 32)
    assert square.shape == (1, 2, 32, 32) and from_square(square, 32, size).shape == images.shape
    if max(size) <= 32:  # not resized
        assert square.sum() == pytest.approx(images.sum().item(), abs=1e-3)
        assert torch.equal(from_square(square, 32, size), images)
    else:
        ramp = torch.linspace(0, 1, size[0])[:, None] + torch.linspace(0, 1, size[1])
        back = from_square(to_square(ramp[None, None], 32), 32, size)[0, 0]
        torch.testing.assert_close(back[3:-3, 3:-3], ramp[3:-3, 3:-3], atol=0.02, rtol=0)
