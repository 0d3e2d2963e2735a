# ruff: noqa: N803, N806  A, B and C are the paper's names
r"""The recurrence of the selective scan and its gradients, chunk by chunk, without autograd.

.. math:: h_t = \exp(\Delta_t A) \odot h_{t-1} + B_t d_t, \qquad y_t = C_t h_t

with the drive :math:`d_t = \Delta_t u_t`; :mod:`nnunet_kd.networks.selective_scan` describes the order of computation.

Shapes: delta and drive are ``(batch, groups, channels, length)``, A is ``(groups, state, channels)``, B and C are
``(batch, groups, state, length)``. States are ``(..., groups, state, channels)``: channels are contiguous, so that
every operation runs over long rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Grid:
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


def scan_chunks(
    delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence, and return the outputs and the initial state of every chunk.

    Returns:
        The outputs, in the shape of delta, and the states ``(chunks, batch, groups, state, channels)``, from which
        :func:`scan_chunks_backward` starts.
    """
    grid = Grid(delta.shape[-1], chunk_size)
    state = A.new_zeros(delta.shape[0], *A.shape)
    buffers = _Buffers(grid, state)
    starts = []
    y = torch.empty_like(delta)
    for chunk in range(grid.chunks):
        starts.append(state)
        buffers.run(grid.read(delta, chunk), grid.read(drive, chunk), A, grid.read(B, chunk), state)
        grid.write((grid.read(C, chunk)[..., None, :] @ buffers.states)[..., 0, :], y, chunk)
        state = buffers.states[-1, -1].clone()
    return y, torch.stack(starts)


def scan_chunks_backward(
    grad_y: Tensor, delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to delta, drive, A, B and C.

    Args:
        grad_y: The gradient with respect to the outputs, in the shape of delta.
        delta: As for :func:`scan_chunks`, like all others.
        drive: The product of delta and u.
        A: The continuous decay rates.
        B: The input vectors.
        C: The output vectors.
        starts: The initial states that :func:`scan_chunks` returned.
        chunk_size: The number of tokens per chunk.
    """
    grid = Grid(delta.shape[-1], chunk_size)
    buffers = _Buffers(grid, starts[0])
    adjoint, rates = torch.empty_like(buffers.states), torch.zeros_like(buffers.states[0])
    by_delta, by_drive, by_B, by_C = (torch.empty_like(x) for x in (delta, drive, B, C))
    later = torch.zeros_like(starts[0])  # gradient of the chunk's final state
    for chunk in reversed(range(grid.chunks)):
        step, inputs, vectors = grid.read(delta, chunk), grid.read(drive, chunk), grid.read(B, chunk)
        buffers.run(step, inputs, A, vectors, starts[chunk])
        grad, outputs = grid.read(grad_y, chunk), grid.read(C, chunk)
        torch.mul(grad[..., None, :], outputs[..., None], out=adjoint)
        later = buffers.run_back(adjoint, later)
        grid.write((grad[..., None, :] @ buffers.states.mT)[..., 0, :], by_C, chunk)
        grid.write((inputs[..., None, :] @ adjoint.mT)[..., 0, :], by_B, chunk)
        grid.write((vectors[..., None, :] @ adjoint)[..., 0, :], by_drive, chunk)
        exponent = adjoint.mul_(buffers.decay)  # gradient with respect to delta A
        exponent[1:].mul_(buffers.states[:-1])
        exponent[0].mul_(buffers.before)
        for now, size in zip(exponent, step, strict=True):
            rates.addcmul_(now, size[..., None, :])
        grid.write(exponent.mul_(A).sum(-2), by_delta, chunk)
    return by_delta, by_drive, rates.sum((0, 1)), by_B, by_C


class _Buffers:
    """The buffers of a chunk, reused by all chunks because allocating costs more than the arithmetic.

    Attributes:
        decay: :math:`\\exp(\\Delta_t A)`.
        states: h_t.
        whole: The product of the decays of a block.
        before: The initial state of a block.
    """

    def __init__(self, grid: Grid, state: Tensor) -> None:
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
