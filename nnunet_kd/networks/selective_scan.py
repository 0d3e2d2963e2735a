# ruff: noqa: N803, N806  A, B, C and D are the paper's names
r"""The selective scan of Mamba, exact, in plain PyTorch, parallel over the sequence and linear in memory.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024, eq. 2 and section 3.2, with
the discretisation of their implementation, :math:`\bar A = \exp(\Delta A)` and :math:`\bar B = \Delta B`:

.. math:: h_t = \exp(\Delta_t A) \odot h_{t-1} + \Delta_t B_t u_t, \qquad y_t = C_t h_t + D u_t

The sequence is cut into chunks, which are processed in order, and a chunk into about as many blocks as a block has
tokens. All blocks of a chunk advance in parallel. A first run from zero gives what each block adds to its final state,
a short pass over the blocks then gives their initial states, and a second run from these gives all states. Decays are
multiplied but never divided by, so underflow is harmless.

Only the states of one chunk exist at a time. The backward pass is the same recurrence in reverse order; it recomputes
the states from the initial state of each chunk, which is all it keeps besides the inputs.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as mamba_kernel
except ImportError:
    mamba_kernel = None

# States of a chunk over all channels: few enough for a processor's last-level cache, or enough to occupy a GPU.
CHUNK_STATES = {"cpu": 2**20, "other": 2**25}
SHORTEST_CHUNK = 64


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Run ``mamba-ssm``'s kernel if it is installed and the tensors are on a GPU, otherwise :func:`chunked_scan`.

    Arguments, shapes and errors are those of :func:`chunked_scan`.
    """
    if mamba_kernel is None or not u.is_cuda or u.dtype == torch.float64:
        y: Tensor = chunked_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
        return y
    _check(u, delta, A, B, C, D, delta_bias, None)
    with _without_autocast(u):
        inputs = [None if x is None else x.float().contiguous() for x in (u, delta, A, B, C, D)]
        bias = None if delta_bias is None else delta_bias.float()
        y = mamba_kernel(*inputs, delta_bias=bias, delta_softplus=delta_softplus)
        return y.to(u.dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its loops would be unrolled
def chunked_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Run the scan in plain PyTorch, in float32 or higher precision even under autocast.

    Args:
        u: The input sequences, one per channel.
        delta: The step sizes, before bias and softplus; negative ones make the state grow.
        A: The continuous decay rates, usually negative.
        B: The input vectors, shared by a group of channels. Channel c belongs to group ``c // (channels / groups)``.
        C: The output vectors, shared like B.
        D: The weights of the skip connection from u, one number per channel; ``None`` for 0.
        delta_bias: The bias of delta, one number per channel.
        delta_softplus: Whether to use ``softplus(delta + delta_bias)``.
        chunk_size: The number of tokens whose states exist at once; ``None`` for as many as fit into a fixed amount of
            memory, but at least 64.

    Shape:
        u and delta ``(batch, channels, length)``, A ``(channels, state)``, B and C ``(batch, groups, state, length)``,
        D and delta_bias ``(channels,)``; the result is like u, in its type.

    Raises:
        ValueError: If shapes disagree, the sequence is empty or the chunk size is below 1.
    """
    _check(u, delta, A, B, C, D, delta_bias, chunk_size)
    dtype = torch.float32
    for x in (u, delta, A, B, C):
        dtype = torch.promote_types(dtype, x.dtype)
    with _without_autocast(u):
        batch, channels, length = u.shape
        groups, state = B.shape[1:3]
        inputs, step = u.to(dtype), delta.to(dtype)
        if delta_bias is not None:
            step = step + delta_bias.to(dtype)[:, None]
        if delta_softplus:
            step = F.softplus(step)
        if chunk_size is None:
            states = CHUNK_STATES.get(u.device.type, CHUNK_STATES["other"])
            chunk_size = max(states // (batch * channels * state), SHORTEST_CHUNK)
        per_group = (batch, groups, channels // groups, length)
        rates = A.to(dtype).view(groups, -1, state).transpose(1, 2).contiguous()
        y: Tensor = _Scan.apply(
            step.reshape(per_group), (step * inputs).reshape(per_group), rates, B.to(dtype), C.to(dtype), chunk_size
        )
        y = y.reshape(u.shape)
        if D is not None:
            y = torch.addcmul(y, inputs, D.to(dtype)[:, None])
        return y.to(u.dtype)


class _Grid:
    """The layout of tokens in chunks, blocks and steps.

    Tensors of a chunk are ``(steps, blocks, ...)``. Consecutive tokens are the steps of a block, followed by those of
    the next block.
    """

    def __init__(self, length: int, chunk_size: int) -> None:
        chunk_size = math.ceil(length / math.ceil(length / chunk_size))  # chunks of equal size
        self.steps = math.isqrt(chunk_size - 1) + 1
        self.blocks = math.ceil(chunk_size / self.steps)
        self.size = self.steps * self.blocks
        self.chunks = math.ceil(length / self.size)

    def _tokens(self, chunk: int) -> slice:
        return slice(chunk * self.size, (chunk + 1) * self.size)

    def read(self, sequence: Tensor, chunk: int) -> Tensor:
        """Read a chunk of ``(batch, groups, rows, length)`` as ``(steps, blocks, batch, groups, rows)``.

        The end is padded with zeros: a step size of 0 without input does not change the state.
        """
        tokens = (
            sequence[..., self._tokens(chunk)].contiguous().permute(3, 0, 1, 2)
        )  # two copies are faster than a strided one
        missing = self.size - tokens.shape[0]
        if missing:
            tokens = torch.cat([tokens, tokens.new_zeros(missing, *tokens.shape[1:])])
        return tokens.reshape(self.blocks, self.steps, *tokens.shape[1:]).transpose(0, 1).contiguous()

    def write(self, values: Tensor, sequence: Tensor, chunk: int) -> None:
        """Write the values of a chunk into a sequence, as the inverse of :meth:`read`."""
        part = sequence[..., self._tokens(chunk)]
        part.copy_(values.transpose(0, 1).flatten(0, 1)[: part.shape[-1]].permute(1, 2, 3, 0).contiguous())


class _Scan(torch.autograd.Function):
    """The scan without D, and its gradients.

    delta and drive (the product of delta and u) are ``(batch, groups, channels, length)``, A is
    ``(groups, state, channels)``, B and C are ``(batch, groups, state, length)``. States are
    ``(..., groups, state, channels)``: channels are contiguous, so that every operation runs over long rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        delta: Tensor,
        drive: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
    ) -> Tensor:
        grid = _Grid(delta.shape[-1], chunk_size)
        state = A.new_zeros(delta.shape[0], *A.shape)
        buffers = _Buffers(grid, state)
        starts = []
        y = torch.empty_like(delta)
        for chunk in range(grid.chunks):
            starts.append(state)
            buffers.run(grid.read(delta, chunk), grid.read(drive, chunk), A, grid.read(B, chunk), state)
            grid.write((grid.read(C, chunk)[..., None, :] @ buffers.states)[..., 0, :], y, chunk)
            state = buffers.states[-1, -1].clone()
        ctx.save_for_backward(delta, drive, A, B, C, torch.stack(starts))
        ctx.grid = grid
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        delta, drive, A, B, C, starts = ctx.saved_tensors
        grid: _Grid = ctx.grid
        buffers = _Buffers(grid, starts[0])
        adjoint, rates = torch.empty_like(buffers.states), torch.zeros_like(buffers.states[0])
        grads = [torch.empty_like(x) for x in (delta, drive, B, C)]
        later = torch.zeros_like(starts[0])  # gradient of the chunk's final state
        for chunk in reversed(range(grid.chunks)):
            step, inputs, vectors = grid.read(delta, chunk), grid.read(drive, chunk), grid.read(B, chunk)
            buffers.run(step, inputs, A, vectors, starts[chunk])
            grad, outputs = grid.read(grad_y, chunk), grid.read(C, chunk)
            torch.mul(grad[..., None, :], outputs[..., None], out=adjoint)
            later = buffers.run_back(adjoint, later)
            grid.write((grad[..., None, :] @ buffers.states.mT)[..., 0, :], grads[3], chunk)
            grid.write((inputs[..., None, :] @ adjoint.mT)[..., 0, :], grads[2], chunk)
            grid.write((vectors[..., None, :] @ adjoint)[..., 0, :], grads[1], chunk)
            exponent = adjoint.mul_(buffers.decay)  # gradient with respect to delta A
            exponent[1:].mul_(buffers.states[:-1])
            exponent[0].mul_(buffers.before)
            for now, size in zip(exponent, step, strict=True):
                rates.addcmul_(now, size[..., None, :])
            grid.write(exponent.mul_(A).sum(-2), grads[0], chunk)
        return grads[0], grads[1], rates.sum((0, 1)), grads[2], grads[3], None


class _Buffers:
    """The buffers of a chunk, reused by all chunks because allocating costs more than the arithmetic.

    Attributes:
        decay: :math:`\\exp(\\Delta_t A)`.
        states: h_t.
        whole: The product of the decays of a block.
        before: The initial state of a block.
    """

    def __init__(self, grid: _Grid, state: Tensor) -> None:
        self.decay = state.new_empty(grid.steps, grid.blocks, *state.shape)
        self.states = torch.empty_like(self.decay)
        self.whole = torch.empty_like(self.decay[0])
        self.before = torch.empty_like(self.whole)
        self.ends = torch.empty_like(self.whole)

    def run(self, delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, start: Tensor) -> None:
        """Fill all buffers for a chunk with the initial state ``start``."""
        binary = A * math.log2(math.e)  # powers of 2 take half the time of powers of e
        torch.mul(delta[..., None, :], binary, out=self.decay).exp2_()
        torch.mul(delta.sum(0)[..., None, :], binary, out=self.whole).exp2_()
        torch.mul(drive[..., None, :], B[..., None], out=self.states)
        decay, states, ends, before = list(self.decay), list(self.states), self.ends, self.before
        before[0] = start
        if len(before) > 1:
            ends.copy_(states[0])
            for a, b in zip(decay[1:], states[1:], strict=True):
                torch.addcmul(b, a, ends, out=ends)
            for block in range(len(before) - 1):
                torch.addcmul(ends[block], self.whole[block], before[block], out=before[block + 1])
        last = before
        for a, state in zip(decay, states, strict=True):
            last = state.addcmul_(a, last)

    def run_back(self, adjoint: Tensor, later: Tensor) -> Tensor:
        """Turn the gradients of the outputs into those of the states, in place.

        Args:
            adjoint: The gradients of the chunk's states through its outputs.
            later: The gradient of the chunk's final state through the later chunks.

        Returns:
            The gradient of the chunk's initial state.
        """
        decay, grads, ends = list(self.decay), list(adjoint), self.ends
        after = torch.empty_like(ends)
        ends.copy_(grads[-1])
        for number in range(len(grads) - 2, -1, -1):
            torch.addcmul(grads[number], decay[number + 1], ends, out=ends)
        ends.mul_(decay[0])
        after[-1] = later
        for block in range(len(after) - 1, 0, -1):
            torch.addcmul(ends[block], self.whole[block], after[block], out=after[block - 1])
        grads[-1].add_(after)
        for number in range(len(grads) - 2, -1, -1):
            grads[number].addcmul_(decay[number + 1], grads[number + 1])
        return torch.addcmul(ends[0], self.whole[0], after[0])


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    # operations are counted on the meta device, which autocast does not support
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    chunk_size: int | None,
) -> None:
    if u.ndim != 3 or not u.shape[-1]:
        raise ValueError(f"expected u (batch, channels, length) with at least one token, got {tuple(u.shape)}")
    batch, channels, length = u.shape
    if A.ndim != 2 or B.ndim != 4:
        raise ValueError(
            f"expected A (channels, state) and B (batch, groups, state, length), got {tuple(A.shape)} and "
            f"{tuple(B.shape)}"
        )
    groups, state = B.shape[1], A.shape[1]
    if channels % groups:
        raise ValueError(f"{channels} channels are not divisible into {groups} groups")
    vectors = (batch, groups, state, length)
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, state)),
        "B": (B, vectors),
        "C": (C, vectors),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"expected {name} {shape} for u {tuple(u.shape)}, got {tuple(tensor.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
