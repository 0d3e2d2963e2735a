"""Loading the weights of a published SAM into networks with its image encoder at another image size."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF


def load_sam_encoder(network: BrainSegDMIF, state_dict: Mapping[str, Tensor]) -> None:
    """Load the image encoder of a published SAM into the encoders of all modalities, and its neck into their neck.

    For another image size, position embeddings are resampled: absolute ones bicubically, and relative ones of global
    attention linearly, as in ``segment_anything``.

    Args:
        network: A network with the same width, depth, patch size and windows as the SAM.
        state_dict: The state dict of a complete SAM, of which only names with the prefix ``image_encoder.`` are read.

    Raises:
        ValueError: If the encoders differ; the message names what is missing, left over or of another shape. Nothing
            is loaded then.
    """
    prefix = "image_encoder."
    published = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    encoders, neck = network.encoder.encoders, network.encoder.neck
    expected = {**encoders[0].state_dict(), **{f"neck.{name}": value for name, value in neck.state_dict().items()}}
    for names, what in ((expected.keys() - published.keys(), "lacks"), (published.keys() - expected.keys(), "has")):
        if names:
            listed = ", ".join(prefix + name for name in sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"the weights are of a SAM with another architecture than the network: it {what} {listed}{more}"
            )
    tables = [f"blocks.{block}.attn.rel_pos_{axis}" for block in network.encoder.global_attention for axis in "hw"]
    fitting = {}
    for name, current in expected.items():
        value = published[name].float()
        if name == "pos_embed" and value.ndim == 4:
            value = _resampled_positions(value, (current.shape[1], current.shape[2]))
        elif name in tables and value.ndim == 2:
            value = _resampled_distances(value, len(current))
        if value.shape != current.shape:
            raise ValueError(
                f"{prefix}{name} has the shape {tuple(value.shape)}, the network's has {tuple(current.shape)}"
            )
        fitting[name] = value
    for encoder in encoders:
        encoder.load_state_dict({name: value for name, value in fitting.items() if not name.startswith("neck.")})
    neck.load_state_dict({name.removeprefix("neck."): fitting[name] for name in fitting if name.startswith("neck.")})


def _resampled_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample absolute position embeddings ``(1, rows, columns, D)`` to another grid, with antialiasing."""
    if table.shape[1:3] == grid:
        return table
    maps = F.interpolate(table.permute(0, 3, 1, 2), grid, mode="bicubic", align_corners=False, antialias=True)
    return maps.permute(0, 2, 3, 1)


def _resampled_distances(table: Tensor, length: int) -> Tensor:
    """Resample relative position embeddings ``(distances, D)`` to another number of distances."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], length, mode="linear", align_corners=False)[0].T
