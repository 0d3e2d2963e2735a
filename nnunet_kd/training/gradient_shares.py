"""How much each term contributes to the gradient of the student: what its weight is relative to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_kd.distillation.terms import Term
from nnunet_kd.training.numbers import SEGMENTATION

Norms = Mapping[str, Mapping[str, float]]


class GradientShares:
    """Logs what each term contributes to the gradient in the first epoch in which its weight is above 0.

    One batch of that epoch is passed through the network once more. Neither weights nor random numbers nor running
    statistics change.
    """

    def __init__(self) -> None:
        self._beginning: list[Term] = []

    def begin(self, terms: Iterable[Term], epoch: int) -> None:
        """Begin an epoch, and note the terms whose weight rises above 0 in it."""
        self._beginning = terms_that_begin(terms, epoch)

    def log(self, trainer: Any, losses: Callable[[], tuple[Tensor, Mapping[str, Tensor]]]) -> None:
        """Log the shares of the terms that begin, unless a gradient is not finite; the next batch is tried then.

        Args:
            trainer: The trainer.
            losses: Computes nnU-Net's loss and all others of a batch, without the wrappers of compilation and DDP.
        """
        if not self._beginning:
            return
        terms = trainer.distiller.terms

        def named() -> dict[str, Tensor]:
            segmentation, others = losses()
            return {SEGMENTATION: segmentation, **{one.name: others[one.name] for one in terms if one.name in others}}

        scale = 1.0 if trainer.grad_scaler is None else trainer.grad_scaler.get_scale()
        norms = measured(trainer.trained(), named, scale, trainer.device)
        if norms is not None:
            for line in describe(self._beginning, trainer.current_epoch, terms, norms):
                trainer.print_to_log_file(line)
            self._beginning = []


def terms_that_begin(terms: Iterable[Term], epoch: int) -> list[Term]:
    """Return the terms whose weight is above 0 for the first time in ``epoch``; depends on nothing but the epoch."""
    return [term for term in terms if term.weight_at(epoch) > 0 and (epoch == 0 or term.weight_at(epoch - 1) == 0)]


def gradient_norms(losses: Mapping[str, Tensor], student: nn.Module, scale: float = 1.0) -> Norms:
    """Return the norm of every loss's gradient over the student's parameters that another loss reaches.

    Args:
        losses: Name -> unweighted scalar loss of one batch, from the same forward pass.
        student: The network whose parameters the gradients are taken of.
        scale: A factor that keeps gradients in half precision from vanishing; the norms are without it.

    Returns:
        Name of the loss that reaches the parameters -> name of the loss -> norm. With several processes, the norms are
        those of the mean gradient over the processes.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    vectors, reached = {}, {}
    for name, loss in losses.items():
        found: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if loss.requires_grad:
            found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        vector = torch.cat([part.flatten().float() for part in parts])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(vector)
            vector /= dist.get_world_size()
        vectors[name], reached[name] = vector, [gradient is not None for gradient in found]
    sizes = torch.tensor([parameter.numel() for parameter in parameters], device=parameters[0].device)
    norms: dict[str, dict[str, float]] = {}
    for name, which in reached.items():
        mask = torch.tensor(which, device=sizes.device).repeat_interleave(sizes)
        norms[name] = {
            other: float(torch.linalg.vector_norm(vector * mask)) / scale for other, vector in vectors.items()
        }
    return norms


def share(term: Term, weight: float, epoch: int, terms: Iterable[Term], norms: Norms) -> float:
    """Return a term's part of the sum of the weighted gradient norms, from 0 to 1.

    The norms are taken over the student's parameters that the term reaches: DCD's stop at the encoder.

    Args:
        term: The term.
        weight: The weight of the term.
        epoch: The epoch, which decides the weights of all other terms.
        terms: All terms of the training.
        norms: Norms of the gradients in a batch of the epoch.
    """
    weights = {other.name: other.weight_at(epoch) for other in terms} | {term.name: weight}
    weights[SEGMENTATION] = 1 - sum(weights[other.name] for other in terms if other.convex)
    parts = {name: abs(weights[name]) * norm for name, norm in norms[term.name].items()}
    total = sum(parts.values())
    return parts[term.name] / total if total else 0.0


def describe(begun: Iterable[Term], epoch: int, terms: list[Term], norms: Norms) -> Iterator[str]:
    """Return one line per term that begins."""
    for term in begun:
        now = term.weight_at(epoch)
        line = f"{term.name} contributes {_percent(share(term, now, epoch, terms, norms))} of the gradient norm"
        if now != term.weight:
            full = _percent(share(term, term.weight, epoch, terms, norms))
            line += f" at this epoch's weight of {now:.3g}, and would contribute {full} at its full weight"
        yield f"{line} of {term.weight:g}" if now != term.weight else f"{line} at its weight of {now:g}"


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def measured(
    joint: Any, losses: Callable[[], Mapping[str, Tensor]], scale: float, device: torch.device
) -> Norms | None:
    """Return the norms of one batch, or ``None`` if any is not finite; nothing of the training changes.

    A forward pass of its own keeps compiled networks and DDP out of this, whose backward passes allow only one use.

    Args:
        joint: The student with its adapters, without the wrappers of compilation and DDP.
        losses: Computes all losses of the batch, from a forward pass through ``joint``.
        scale: The scale of the gradient scaler, 1 without one.
        device: The device of the training.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _keeping_buffers(joint):
        norms = gradient_norms(losses(), joint.student, scale)
    finite = all(torch.isfinite(torch.tensor([*of.values()])).all() for of in norms.values())
    return norms if finite else None


@contextmanager
def _keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the running statistics that a forward pass in training mode changes."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
