"""Find the places where the CPU waits for the GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu.place import Place


class Synchronizations:
    """Count or forbid synchronizations while switched on.

    On a GPU, PyTorch reports them. In a dry run, the operators count whose results or sizes the CPU would have to wait
    for: what reads a number, or has as many results as a condition has hits.

    Args:
        place: Where the checks run.
        allowed: Whether they are counted; if not, each raises where it happens.

    Attributes:
        count: How many there were, 0 before :meth:`off`.
    """

    def __init__(self, place: Place, allowed: bool = False) -> None:
        self._place, self._allowed = place, allowed
        self.count = 0
        self._watch: Any = None

    def on(self) -> None:
        """Begin to watch."""
        self._watch = _on_the_cpu(self._allowed) if self._place.fake else _on_a_gpu(self._allowed)
        self._found = self._watch.__enter__()

    def off(self) -> None:
        """End to watch, if it has begun."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.__exit__(None, None, None)
            self.count += len(self._found)


@contextmanager
def _on_a_gpu(allowed: bool) -> Iterator[list[Any]]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[Any] = []
        torch.cuda.set_sync_debug_mode("warn" if allowed else "error")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found.extend(one for one in caught if "synchroniz" in str(one.message))


@contextmanager
def _on_the_cpu(allowed: bool) -> Iterator[list[Any]]:
    found: list[Any] = []
    with _Watch(found, allowed):
        yield found


class _Watch(TorchDispatchMode):
    waiting = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}
    )
    indexing = frozenset({"index", "index_put", "index_put_"})

    def __init__(self, found: list[Any], allowed: bool) -> None:
        super().__init__()
        self._found, self._allowed = found, allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in self.indexing and any(one is not None and one.dtype == torch.bool for one in args[1])
        if masks or name in self.waiting:
            if not self._allowed:
                raise RuntimeError(f"called a synchronizing operation: {name}")
            self._found.append(name)
        return func(*args, **(kwargs or {}))
