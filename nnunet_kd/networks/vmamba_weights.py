"""Loading the ImageNet weights of VMamba into VM-UNet, as VM-UNet's published code does.

Liu et al., "VMamba: Visual State Space Model", in the layout of its first release, such as
``vmamba_small_e238_ema.pth``, from which VM-UNet and DSVM-UNet start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_kd.networks.vm_unet import PatchMerging, VMUNet
from nnunet_kd.nnunet.trust.archives import check_stored

# Our names within a block -> the published ones.
_BLOCK = {
    "norm.weight": "ln_1.weight",
    "norm.bias": "ln_1.bias",
    "mixer.expand.weight": "self_attention.in_proj.weight",
    "mixer.depthwise.weight": "self_attention.conv2d.weight",
    "mixer.depthwise.bias": "self_attention.conv2d.bias",
    "mixer.projection": "self_attention.x_proj_weight",
    "mixer.step_projection": "self_attention.dt_projs_weight",
    "mixer.step_bias": "self_attention.dt_projs_bias",
    "mixer.A_log": "self_attention.A_logs",
    "mixer.D": "self_attention.Ds",
    "mixer.norm.weight": "self_attention.out_norm.weight",
    "mixer.norm.bias": "self_attention.out_norm.bias",
    "mixer.reduce.weight": "self_attention.out_proj.weight",
}
_EMBEDDING = {"project.weight": "proj.weight", "project.bias": "proj.bias"}
_NORM = {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
_PUBLISHED_ORDER = (0, 2, 1, 3)  # of the four merged neighbours: published column by column, here row by row


def read_vmamba(path: Path) -> dict[str, Tensor]:
    """Read VMamba's weights from a file, which can hold a state dict or one under ``"model"``.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it holds no state dict, or more than weights and numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights of VMamba in {path}")
    check_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(
            f"cannot read {path}: it is damaged, or holds more than weights. If you trust its source, save "
            "torch.load(FILE, weights_only=False)['model'] as a file of its own, and name that"
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} does not hold VMamba's weights")
    return weights


def load_vmamba(network: VMUNet, weights: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of a VMamba classifier into the encoder and, stage by stage, into the decoder.

    The blocks of VMamba's ``layers.N`` become those of encoder stage N and, as VM-UNet's published code has it, of the
    decoder stage with the same resolution, of which the deepest has no skip. Stages with fewer blocks take the first.
    The patch expansions and the heads have no counterpart. Images of one channel get the sum over VMamba's three,
    because the published code repeats the channel; with another number the patch embedding keeps its weights.

    Args:
        network: A network with VMamba's widths and strides.
        weights: VMamba's state dict.

    Returns:
        The names of the encoder's parameters that keep their values.

    Raises:
        ValueError: If the network does not have VMamba's widths, strides and state size, or more blocks in a stage;
            nothing is loaded then.
    """
    strides = [tuple(stride) for stride in network.encoder.strides]
    if strides != [(4, 4), *[(2, 2)] * (len(strides) - 1)]:
        raise ValueError(f"VMamba has the strides 4, 2, 2 and 2, the network has {strides}")
    loaded: dict[str, Tensor] = {}
    for module, ours, published, names in _counterparts(network):
        own = module.state_dict()
        for name, theirs in names.items():
            value = weights.get(f"{published}.{theirs}")
            if value is None:
                raise ValueError(
                    f"the weights of VMamba lack {published}.{theirs}: the network has more blocks, or the file is of "
                    "another release than VMamba's first"
                )
            value = _adapted(module, name, value, own[name])
            if value is not None:
                if value.shape != own[name].shape:
                    raise ValueError(
                        f"{published}.{theirs} of VMamba has the shape {tuple(value.shape)}, the network's "
                        f"{ours}.{name} has {tuple(own[name].shape)}"
                    )
                loaded[f"{ours}.{name}"] = value
    network.load_state_dict(loaded, strict=False)
    return [name for name, _ in network.named_parameters() if name.startswith("encoder.") and name not in loaded]


def _counterparts(network: VMUNet) -> Iterator[tuple[nn.Module, str, str, Mapping[str, str]]]:
    """Yield the modules that have a counterpart, with their name, the published one and the names of parameters."""
    for number, stage in enumerate(network.encoder.stages):
        coarser, *blocks = stage.children()
        merged = isinstance(coarser, PatchMerging)
        published = f"layers.{number - 1}.downsample" if merged else "patch_embed"
        names = {"reduce.weight": "reduction.weight", **_NORM} if merged else {**_EMBEDDING, **_NORM}
        yield coarser, f"encoder.stages.{number}.0", published, names
        for block, module in enumerate(blocks):
            yield module, f"encoder.stages.{number}.{block + 1}", f"layers.{number}.blocks.{block}", _BLOCK
    deepest = len(network.encoder.stages) - 1
    sequences: dict[str, nn.Module] = {"decoder.bottleneck": network.decoder.bottleneck}
    for number in range(deepest):
        name = f"decoder.stages.{number}.blocks"
        sequences[name] = network.get_submodule(name)
    for layer, (ours, sequence) in zip(range(deepest, -1, -1), sequences.items(), strict=True):
        for block, module in enumerate(sequence.children()):
            yield module, f"{ours}.{block}", f"layers.{layer}.blocks.{block}", _BLOCK


def _adapted(module: nn.Module, name: str, value: Tensor, own: Tensor) -> Tensor | None:
    """Bring a published tensor into the order and shape of ours; ``None`` if it has no place in the network."""
    if isinstance(module, PatchMerging) and value.shape == own.shape:
        neighbours = value.reshape(*value.shape[:-1], 4, -1)
        return neighbours[..., list(_PUBLISHED_ORDER), :].flatten(-2)
    if name == "project.weight" and value.ndim == 4 and value.shape[1] != own.shape[1]:
        return value.sum(1, keepdim=True) if own.shape[1] == 1 else None
    if name == "mixer.step_bias":
        return value.flatten()
    return value
