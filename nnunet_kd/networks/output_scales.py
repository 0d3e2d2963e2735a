"""What nnU-Net has to know of networks with one output: it asks every network for several under deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# nnU-Net takes the grids of the outputs from these, the last left out: the full one and a quarter of it.
ONE_OUTPUT_STRIDES = [[1, 1], [4, 4], [4, 4]]


def check_output_scales(network: str, conv_op: Any, strides: Sequence[Sequence[int]] | None) -> None:
    """Whether a plan's keywords are those of a 2-D network with one output.

    Args:
        network: Its name, for the message.
        conv_op: Class of convolutions the plan names.
        strides: Of the plan.

    Raises:
        ValueError: Where they are not.
    """
    if conv_op is not nn.Conv2d:
        raise ValueError(f"{network} segments slices: conv_op must be torch.nn.Conv2d, got {conv_op}")
    if strides is not None and [list(stride) for stride in strides] != ONE_OUTPUT_STRIDES:
        raise ValueError(f"strides of {network} are {ONE_OUTPUT_STRIDES}, got {strides}")


def full_and_quarter(logits: Tensor) -> list[Tensor]:
    """The two outputs of such a network under deep supervision; nnU-Net gives the coarsest the weight 0.

    Args:
        logits: ``(B, C, H, W)``.
    """
    quarter = [max(round(side / 4), 1) for side in logits.shape[2:]]
    return [logits, F.interpolate(logits, quarter, mode="bilinear", align_corners=False)]
