# ruff: noqa: N803  A, B, C and D are the paper's names
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
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_kd.networks.scan_chunks import Grid, scan_chunks, scan_chunks_backward


def installed_kernel() -> Callable[..., Any] | None:
    """Return ``mamba-ssm``'s scan, or ``None`` without the package or without the kernel that it calls.

    Newer versions can be imported without the compiled kernel.
    """
    try:
        from mamba_ssm.ops import selective_scan_interface as interface
    except ImportError:
        return None
    if getattr(interface, "selective_scan_cuda", None) is None:
        return None
    scan: Callable[..., Any] = interface.selective_scan_fn
    return scan


mamba_kernel = installed_kernel()

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
        y: Tensor
        y, _ = _scan(
            step.reshape(per_group), (step * inputs).reshape(per_group), rates, B.to(dtype), C.to(dtype), chunk_size
        )
        y = y.reshape(u.shape)
        if D is not None:
            y = torch.addcmul(y, inputs, D.to(dtype)[:, None])
        return y.to(u.dtype)


def _operator(name: str, schema: str, function: Callable[..., Any]) -> Any:
    """Register an operator that computes without autocast, and that compilation does not look into."""

    def run(*arguments: Any) -> Any:
        with _without_autocast(arguments[0]):
            return function(*arguments)

    return torch.library.custom_op(f"nnunet_kd::{name}", run, mutates_args=(), schema=schema)


# Compilation would unroll the loops over chunks, differently for every length.
_scan = _operator(
    "selective_scan",
    "(Tensor delta, Tensor drive, Tensor A, Tensor B, Tensor C, SymInt chunk_size) -> (Tensor, Tensor)",
    scan_chunks,
)
_scan_backward = _operator(
    "selective_scan_backward",
    "(Tensor grad_y, Tensor delta, Tensor drive, Tensor A, Tensor B, Tensor C, Tensor starts, SymInt chunk_size)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    scan_chunks_backward,
)


@_scan.register_fake  # type: ignore[untyped-decorator]
def _(delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    chunks = Grid(int(delta.shape[-1]), int(chunk_size)).chunks
    return torch.empty_like(delta), A.new_empty(chunks, delta.shape[0], *A.shape)


@_scan_backward.register_fake  # type: ignore[untyped-decorator]
def _(_grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in inputs[:5])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, _grad_starts: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    return (*_scan_backward(grad_y, *ctx.saved_tensors, ctx.chunk_size), None)


_scan.register_autograd(_backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.nnunet_kd.selective_scan)
def _flops(delta: Any, _drive: Any, A: Any, _B: Any, _C: Any, chunk_size: int, **_: Any) -> int:
    """Count the products of C and the states of all tokens, padding included."""
    batch, *_groups_channels, length = delta
    grid = Grid(length, chunk_size)
    tokens: int = batch * grid.chunks * grid.size
    return 2 * tokens * int(math.prod(A))


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
