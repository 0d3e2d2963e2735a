"""Deep supervision for networks with one output, of which nnU-Net expects several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# nnU-Net derives the grids of the outputs from all strides but the last: the full grid and a quarter of it.
ONE_OUTPUT_STRIDES = [[1, 1], [4, 4], [4, 4]]


def check_output_scales(network: str, conv_op: Any, strides: Sequence[Sequence[int]] | None) -> None:
    """Check that the arguments in the plans fit a 2-D network with one output.

    Args:
        network: The name of the network, for the message.
        conv_op: The class of convolutions in the plans.
        strides: The strides in the plans.

    Raises:
        ValueError: If they do not fit.
    """
    if conv_op is not nn.Conv2d:
        raise ValueError(f"{network} segments slices: conv_op must be torch.nn.Conv2d, got {conv_op}")
    if strides is not None and [list(stride) for stride in strides] != ONE_OUTPUT_STRIDES:
        raise ValueError(f"the strides of {network} must be {ONE_OUTPUT_STRIDES}, got {strides}")


def full_and_quarter(logits: Tensor) -> list[Tensor]:
    """Return the logits and a copy at a quarter of the resolution, to which nnU-Net gives the weight 0.

    Args:
        logits: The logits, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
    """
    quarter = [max(round(side / 4), 1) for side in logits.shape[2:]]
    mode = "bilinear" if logits.ndim == 4 else "trilinear"
    return [logits, F.interpolate(logits, quarter, mode=mode, align_corners=False)]
