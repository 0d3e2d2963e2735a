"""Where the checks run: on a GPU, or, in a dry run, on the CPU at small sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Size = TypeVar("Size")


@dataclass(frozen=True)
class Place:
    """A device.

    Attributes:
        fake: Whether this is a dry run, in which the CPU stands in for the GPU.
    """

    fake: bool

    @property
    def device(self) -> torch.device:
        """The GPU, or its stand-in."""
        return torch.device("cpu" if self.fake else "cuda")

    def size(self, real: Size, small: Size) -> Size:
        """Return the size for a GPU, or the small one of a dry run."""
        return small if self.fake else real

    def autocast(self) -> torch.autocast:
        """Return nnU-Net's mixed precision, which is float16."""
        return torch.autocast(self.device.type, torch.float16)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if not self.fake:
            torch.cuda.synchronize()

    def copied(self, given: Any, dtype: torch.dtype) -> Any:
        """Return a copy of a module, or of a tensor of floating type in this type, on the device."""
        return copied(given, self.device, dtype)


def copied(given: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Return a copy of a module or tensor; what is not of floating type keeps its type."""
    if isinstance(given, torch.nn.Module):
        return copy.deepcopy(given).to(device, dtype)
    return given.detach().to(device, dtype if given.is_floating_point() else given.dtype, copy=True)


@contextmanager
def exact_products() -> Iterator[None]:
    """Let a GPU multiply float32 numbers as such, not as TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in backends]
    try:
        for one in backends:
            one.allow_tf32 = False
        yield
    finally:
        for one, allowed in zip(backends, before, strict=True):
            one.allow_tf32 = allowed
