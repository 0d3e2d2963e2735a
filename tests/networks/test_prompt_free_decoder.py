import math

import torch
import torch.nn.functional as F

from nnunet_kd.networks.prompt_free_decoder import MaskModulation, PromptGenerator, modulated_masks, upsampling
from tests.networks.small_brainseg_dmif import random_images


def literal_attention(module, queries, keys, values):
    """Compute scaled dot-product attention head by head."""
    q, k, v = module.q_proj(queries), module.k_proj(keys), module.v_proj(values)
    width = q.shape[-1] // module.num_heads
    heads = []
    for start in range(0, q.shape[-1], width):
        part = slice(start, start + width)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(width)
        heads.append(scores.softmax(-1) @ v[..., part])
    return module.out_proj(torch.cat(heads, -1))


def test_prompt_generator_is_equations_8_and_9():
    torch.manual_seed(0)
    module = PromptGenerator(3, 32)
    image = random_images(2, 12, 32)
    tokens, enhanced = module(image)
    assert tokens.shape == (2, 3, 32) and enhanced.shape == (2, 12, 32)
    queries = module.mask_tokens.expand(2, -1, -1)
    queries = F.layer_norm(queries + literal_attention(module.self_attention, queries, queries, queries), [32])
    queries = F.layer_norm(queries + literal_attention(module.token_to_image, queries, image, image), [32])
    queries = F.layer_norm(queries + module.mlp.lin2(F.relu(module.mlp.lin1(queries))), [32])
    torch.testing.assert_close(tokens, queries)
    expected = F.layer_norm(image + literal_attention(module.image_to_token, image, queries, queries), [32])
    torch.testing.assert_close(enhanced, expected)


def test_equation_10_gives_three_resolutions():
    features = random_images(2, 32, 3, 4)
    for scale in (2, 4, 8):
        path = upsampling(32, 4, scale)
        assert path[0].kernel_size == path[0].stride == (scale, scale)
        assert path(features).shape == (2, 4, 3 * scale, 4 * scale)


def test_masks_are_equations_11_to_13_summed_over_channels():
    torch.manual_seed(0)
    module, tokens, image = MaskModulation(32, 4), random_images(2, 3, 32), random_images(2, 12, 32, seed=2)
    modulation = module(tokens, image)
    assert modulation.shape == (2, 3, 4)
    scales = [random_images(2, 4, 3 * scale, 4 * scale) for scale in (2, 4, 8)]
    enhanced = [modulation[..., None, None] * maps[:, None] for maps in scales]  # (B, K, C, rows, columns)
    resized = [F.interpolate(maps.flatten(1, 2), (24, 32), mode="bilinear") for maps in enhanced]
    final = sum(resized).view(2, 3, 4, 24, 32)
    torch.testing.assert_close(modulated_masks(modulation, scales), final.sum(2))
