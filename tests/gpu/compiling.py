"""Compilation as nnU-Net does it, and what it has made of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.gpu.place import Place

NNUNET = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer"


@contextmanager
def nnunet_compiles(place: Place) -> Iterator[None]:
    """Let nnU-Net compile networks, as it does on a GPU by default; on the CPU without generating code."""
    torch._dynamo.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_compile", "t")
        if place.fake:
            patch.setattr(f"{NNUNET}._do_i_compile", lambda _: True)
            patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        yield
    torch._dynamo.reset()


def describe_compilation() -> dict[str, Any]:
    """Return the number of graphs and of breaks since the counters were cleared."""
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
