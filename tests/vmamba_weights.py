"""Random weights with the names and shapes of VMamba's first release, and its encoder written out literally."""

import math

import torch
import torch.nn.functional as F

STATES = 16
DIRECTIONS = 4


def vmamba_state(widths, depths, channels=3, seed=0):
    """The state dict of a classifier; norms and skips are random too, so that no order of them can be confused."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def add(name, *shape, scale=None):
        fan_in = math.prod(shape[1:]) or 1
        state[name] = torch.randn(*shape, generator=generator) * (scale or fan_in**-0.5)

    def add_norm(name, width):
        add(f"{name}.weight", width, scale=1.0)
        add(f"{name}.bias", width, scale=0.3)

    add("patch_embed.proj.weight", widths[0], channels, 4, 4)
    add("patch_embed.proj.bias", widths[0], scale=0.3)
    add_norm("patch_embed.norm", widths[0])
    for layer, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        inner, rank = 2 * width, math.ceil(width / 16)
        for block in range(depth):
            name = f"layers.{layer}.blocks.{block}"
            add_norm(f"{name}.ln_1", width)
            mixer = f"{name}.self_attention"
            add(f"{mixer}.in_proj.weight", 2 * inner, width)
            add(f"{mixer}.conv2d.weight", inner, 1, 3, 3)
            add(f"{mixer}.conv2d.bias", inner, scale=0.3)
            add(f"{mixer}.x_proj_weight", DIRECTIONS, rank + 2 * STATES, inner, scale=inner**-0.5)
            add(f"{mixer}.dt_projs_weight", DIRECTIONS, inner, rank, scale=rank**-0.5)
            add(f"{mixer}.dt_projs_bias", DIRECTIONS, inner, scale=0.3)
            add(f"{mixer}.A_logs", DIRECTIONS * inner, STATES, scale=0.3)
            add(f"{mixer}.Ds", DIRECTIONS * inner, scale=1.0)
            add_norm(f"{mixer}.out_norm", inner)
            add(f"{mixer}.out_proj.weight", width, inner)
        if layer + 1 < len(widths):
            add_norm(f"layers.{layer}.downsample.norm", 4 * width)
            add(f"layers.{layer}.downsample.reduction.weight", 2 * width, 4 * width)
    add_norm("norm", widths[-1])
    add("head.weight", 10, widths[-1])
    return state


def published_encoder(state, images):
    """The features of every layer before its downsampling, ``(B, C, H, W)``; the recurrence is run token by token."""
    tokens = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    tokens = _norm(state, "patch_embed.norm", tokens.permute(0, 2, 3, 1))
    features, layer = [], 0
    while f"layers.{layer}.blocks.0.ln_1.weight" in state:
        block = 0
        while f"layers.{layer}.blocks.{block}.ln_1.weight" in state:
            name = f"layers.{layer}.blocks.{block}"
            tokens = tokens + _mixed(state, f"{name}.self_attention", _norm(state, f"{name}.ln_1", tokens))
            block += 1
        features.append(tokens.permute(0, 3, 1, 2))
        if f"layers.{layer}.downsample.reduction.weight" in state:
            corners = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            merged = _norm(state, f"layers.{layer}.downsample.norm", torch.cat(corners, -1))
            tokens = merged @ state[f"layers.{layer}.downsample.reduction.weight"].T
        layer += 1
    return features


def _norm(state, name, tokens):
    return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _mixed(state, name, tokens):
    weights = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    x, gate = (tokens @ weights["in_proj.weight"].T).chunk(2, -1)
    inner = x.shape[-1]
    x = F.conv2d(x.permute(0, 3, 1, 2), weights["conv2d.weight"], weights["conv2d.bias"], padding=1, groups=inner)
    x = F.silu(x)
    _, _, height, width = x.shape
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    total = torch.zeros_like(x)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        own = slice(k * inner, (k + 1) * inner)
        rates, skip = -torch.exp(weights["A_logs"][own]), weights["Ds"][own]
        hidden = x.new_zeros(len(x), inner, STATES)
        for i, j in order:
            token = x[:, :, i, j]
            rank = weights["dt_projs_weight"].shape[-1]
            step, reads, writes = (token @ weights["x_proj_weight"][k].T).split((rank, STATES, STATES), -1)
            step = F.softplus(step @ weights["dt_projs_weight"][k].T + weights["dt_projs_bias"][k])[..., None]
            hidden = torch.exp(step * rates) * hidden + step * reads[:, None] * token[..., None]
            total[:, :, i, j] += (hidden * writes[:, None]).sum(-1) + skip * token
    y = _norm(state, f"{name}.out_norm", total.permute(0, 2, 3, 1)) * F.silu(gate)
    return y @ weights["out_proj.weight"].T
