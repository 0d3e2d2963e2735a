"""The visual state space (VSS) block, which scans an image along rows and columns, forwards and backwards.

Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, in the form of VM-UNet (Ruan et al., "VM-UNet: Vision
Mamba UNet for Medical Image Segmentation", arXiv:2402.02491, section 3.2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.networks.selective_scan import selective_scan

DIRECTIONS = 4
STEP_SIZES = (1e-3, 1e-1)


class SS2D(nn.Module):
    r"""The two-dimensional selective scan with its surrounding layers.

    .. math:: y = W_{out}\left(\mathrm{LN}\Big(\sum_k S_k(\sigma(\mathrm{DW}(x_1)))\Big) \odot \sigma(x_2)\right),
        \qquad (x_1, x_2) = W_{in} x

    with SiLU :math:`\sigma`, a depthwise 3x3 convolution DW and the selective scan :math:`S_k` along direction k, whose
    step sizes, B and C are projected from its own sequence. The scan and the sum are computed in float32 or higher
    precision.

    Args:
        channels: The number of channels of input and output.
        state_size: N, the size of a channel's state.
        expansion: The number of inner channels, relative to ``channels``.
    """

    def __init__(self, channels: int, state_size: int = 16, expansion: int = 2) -> None:
        super().__init__()
        inner, rank = expansion * channels, math.ceil(channels / 16)
        self.split = [rank, state_size, state_size]
        self.expand = nn.Linear(channels, 2 * inner, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.projection = nn.Parameter(torch.empty(DIRECTIONS, sum(self.split), inner))
        self.step_projection = nn.Parameter(torch.empty(DIRECTIONS, inner, rank))
        self.step_bias = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS * inner, state_size))
        self.D = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.norm = nn.LayerNorm(inner)
        self.reduce = nn.Linear(inner, channels, bias=False)
        self.reset_scan()

    @torch.no_grad()
    def reset_scan(self) -> None:
        """Set Mamba's initial values (section 3.6): A is -1 .. -N, D is 1, step sizes lie between 0.001 and 0.1."""
        inner, rank = self.step_projection.shape[1:]
        nn.init.uniform_(self.projection, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.step_projection, -(rank**-0.5), rank**-0.5)
        low, high = (math.log(size) for size in STEP_SIZES)
        steps = torch.exp(torch.empty_like(self.step_bias).uniform_(low, high))
        self.step_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
        states = torch.arange(1, self.A_log.shape[1] + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, channels)`` to the same shape."""
        inside, gate = self.expand(x).chunk(2, -1)
        scanned = self.scan(F.silu(self.depthwise(inside.permute(0, 3, 1, 2))))
        y: Tensor = self.reduce(self.norm(scanned.permute(0, 2, 3, 1)) * F.silu(gate))
        return y

    def scan(self, x: Tensor) -> Tensor:
        """Return the sum of the four scans, ``(B, inner, H, W)`` to the same shape."""
        sequences = unfold_directions(x)
        steps, inputs, outputs = torch.split(self.projection @ sequences, self.split, 2)
        steps = (self.step_projection @ steps).flatten(1, 2)
        precise = torch.promote_types(x.dtype, torch.float32)
        y = selective_scan(
            sequences.flatten(1, 2).to(precise),
            steps,
            -torch.exp(self.A_log),
            inputs,
            outputs,
            self.D,
            self.step_bias,
            delta_softplus=True,
        )
        return fold_directions(y.reshape(sequences.shape), x.shape[2], x.shape[3])


def unfold_directions(x: Tensor) -> Tensor:
    """Unfold ``(B, C, H, W)`` to ``(B, 4, C, H W)``: row by row, column by column, and both reversed."""
    forwards = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    return torch.cat([forwards, forwards.flip(-1)], 1)


def fold_directions(y: Tensor, height: int, width: int) -> Tensor:
    """Move every token back to its pixel and sum over directions: ``(B, 4, C, H W)`` to ``(B, C, H, W)``."""
    rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    both: Tensor = rows.reshape(*rows.shape[:2], height, width)
    return both + columns.reshape(*rows.shape[:2], width, height).transpose(2, 3)


class VSSBlock(nn.Module):
    """A residual block, ``x + SS2D(LN(x))``.

    Args:
        channels: The number of channels of input and output.
        state_size: The state size of the scan.
        drop_path: The probability that a sample of a training batch skips the block.
    """

    def __init__(self, channels: int, state_size: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = SS2D(channels, state_size)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, channels)`` to the same shape."""
        branch: Tensor = self.mixer(self.norm(x))
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            branch = branch * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device) < keep) / keep
        return x + branch
