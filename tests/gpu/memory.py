"""The peak memory of what a function computes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.gpu.place import Place


def peak_bytes(place: Place, function: Callable[[], object]) -> int:
    """Call a function, and return the most bytes of the tensors that it made and that existed at once."""
    if place.fake:
        with _Storages() as storages:
            function()
        return storages.peak
    gc.collect()  # so that nothing older is freed while the function runs
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class _Storages(TorchDispatchMode):
    """Follow the storages of tensors from their creation until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._seen and id(storage) not in given:
                    self._seen.add(storage)
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
                    self.peak = max(self.peak, self._now)
        return made

    def _free(self, size: int) -> None:
        self._now -= size
