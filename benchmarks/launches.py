"""Count the kernels that a distillation term launches in a training step, and the memory that they read and write.

    python benchmarks/launches.py [--patch 128 128 128] [--batch 2] [--reduction 4] [--classes 4] [--operators]

The script takes every term forward and backward at the sizes of nnU-Net's largest U-Net: six stages with 32 to 320
channels, features in float16 as autocast gives them to the losses, and a student of a quarter of the width. Nothing is
computed: the tensors are fake. A kernel is an operator of ATen that is neither a view nor an allocation. It reads every
element of its arguments once and writes its results once. A GPU launches more kernels where an operator needs several,
and reads less where a cache holds what it reads.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_kd.losses import (
    CIRKDLoss,
    CWDLoss,
    DCDLoss,
    DPRDLoss,
    DualSelfLoss,
    FitNetsLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsKDLoss,
    ReCoKDLoss,
    RKDLoss,
    SKDLoss,
)
from nnunet_kd.wavelets import analysis_matrix, forget_constants

WIDTHS = (32, 64, 128, 256, 320, 320)
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")


@dataclass
class Launches(TorchDispatchMode):
    """The kernels launched, and the bytes read and written, while the mode is active.

    Attributes:
        kernels: The number of launches of every operator, by name.
        read: The number of bytes read.
        written: The number of bytes written.
        traffic: The number of bytes read and written by every operator, by name.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    read: int = 0
    written: int = 0
    traffic: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def count(self) -> int:
        """The number of kernels."""
        return self.kernels.total()

    @property
    def gigabytes(self) -> float:
        """The traffic, reads and writes together, in units of 10^9 bytes."""
        return (self.read + self.written) / 1e9

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        returns = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        if view or name in ALLOCATIONS or func.namespace != "aten" or not any(map(_bytes, tree_leaves(result))):
            return result
        given = [*args, *(kwargs or {}).values()]
        outputs = {id(one) for one in tree_leaves(result)} if any(one.alias_info for one in returns) else set()
        overwritten = outputs if name in ("copy_", "zero_", "fill_") or "out" in (kwargs or {}) else set()
        read = sum(_bytes(one) for one in tree_leaves(given) if id(one) not in overwritten)
        written = sum(_bytes(one) for one in tree_leaves(result))
        self.kernels[name] += 1
        self.read += read
        self.written += written
        self.traffic[name] += read + written
        return result


def _bytes(one: Any) -> int:
    """The bytes of the distinct elements of a tensor: an expanded axis counts once."""
    if not isinstance(one, Tensor):
        return 0
    elements = 1
    for length, stride in zip(one.shape, one.stride(), strict=True):
        elements *= length if stride or not length else 1
    return elements * one.element_size()


@dataclass(frozen=True)
class Sizes:
    """What the terms are counted for."""

    patch: tuple[int, ...] = (128, 128, 128)
    batch: int = 2
    reduction: int = 4
    classes: int = 4

    def features(self, reduction: int = 1, learns: bool = False) -> list[Tensor]:
        """Return the features of an encoder, finest stage first."""
        return [
            torch.empty(self.batch, width // reduction, *(length >> stage for length in self.patch)).half()
            .requires_grad_(learns)
            for stage, width in enumerate(WIDTHS)
        ]  # fmt: skip

    def logits(self, learns: bool = False) -> list[Tensor]:
        """Return the logits of all scales that are trained, finest first."""
        grids = [tuple(length >> scale for length in self.patch) for scale in range(len(WIDTHS) - 2)]
        return [torch.empty(self.batch, self.classes, *grid).half().requires_grad_(learns) for grid in grids]


def stages(loss: Any, sizes: Sizes, **options: Any) -> Callable[[], object]:
    """Return a step of a loss on the features of all stages."""
    student, teacher = sizes.features(sizes.reduction, learns=True), sizes.features()
    dim = len(sizes.patch)
    more = {"num_classes": sizes.classes} if getattr(loss, "remembers_classes", False) else {}
    projections = [loss.projection(s.shape[1], t.shape[1], dim, **more) for s, t in zip(student, teacher, strict=True)]

    def step() -> None:
        parts = [loss(*pair, **options) for pair in zip(student, teacher, projections, strict=True)]
        torch.stack(parts).sum().backward()

    return step


def tuning(loss: FreeKDLoss, sizes: Sizes) -> Callable[[], object]:
    """Return a step of the prompts' tuning, without the teacher's decoder."""
    teacher = sizes.features()
    adapters = [loss.projection(one.shape[1], one.shape[1], len(sizes.patch)) for one in teacher]

    def step() -> None:
        filtered, redundancies = zip(*map(loss.tuning, teacher, adapters), strict=True)
        gradients = [torch.empty_like(one) for one in filtered]
        torch.autograd.backward([*filtered, torch.stack(redundancies).sum()], [*gradients, torch.ones(())])

    return step


def on_logits(loss: Any, sizes: Sizes, scales: int | None) -> Callable[[], object]:
    """Return a step of a loss on the logits of the finest scales."""
    student, teacher = sizes.logits(learns=True)[:scales], sizes.logits()[:scales]

    def step() -> None:
        torch.stack([loss(*pair) for pair in zip(student, teacher, strict=True)]).sum().backward()

    return step


def dual_self_distillation(sizes: Sizes) -> Callable[[], object]:
    """Return a step of self-distillation at full width."""
    encoder, decoder = sizes.features(learns=True), sizes.features(learns=True)[:-1]
    loss = DualSelfLoss()
    adapters: nn.Module = loss.adapters(WIDTHS, WIDTHS[:-1], len(sizes.patch))
    return lambda: loss(encoder, decoder, adapters).backward()


def annotation(sizes: Sizes) -> dict[str, Any]:
    """Return the classes of all voxels."""
    return {"classes": torch.zeros(sizes.batch, *sizes.patch, dtype=torch.int64), "num_classes": sizes.classes}


STEPS: dict[str, Callable[[Sizes], Callable[[], object]]] = {
    "DCD": lambda sizes: stages(DCDLoss(), sizes),
    "DCD, published transform": lambda sizes: stages(DCDLoss(transform="published"), sizes),
    "FreeKD": lambda sizes: stages(FreeKDLoss(), sizes),
    "FreeKD, tuning": lambda sizes: tuning(FreeKDLoss(), sizes),
    "IFVD": lambda sizes: stages(IFVDLoss(), sizes, **annotation(sizes)),
    "DPRD": lambda sizes: stages(DPRDLoss(), sizes, foreground=annotation(sizes)["classes"][:, None] > 0),
    "ReCoKD": lambda sizes: stages(
        ReCoKDLoss(), sizes, target=annotation(sizes)["classes"][:, None], num_classes=sizes.classes
    ),
    "FitNets": lambda sizes: stages(FitNetsLoss(), sizes),
    "LogitsKD": lambda sizes: on_logits(LogitsKDLoss(), sizes, None),
    "CWD": lambda sizes: on_logits(CWDLoss(), sizes, 1),
    "DualSelfKD": dual_self_distillation,
    "RKD": lambda sizes: stages(RKDLoss(), sizes),
    "CIRKD": lambda sizes: stages(CIRKDLoss(), sizes, **annotation(sizes)),
    "SKD": lambda sizes: stages(SKDLoss(), sizes),
}


def count(method: str, sizes: Sizes) -> Launches:
    """Count a step of a term, after a first one that makes the constants.

    Args:
        method: A key of ``STEPS``.
        sizes: What to count it for.
    """
    for length in {length >> stage for length in sizes.patch for stage in range(len(WIDTHS) + 2)} - {0}:
        for wavelet in ("db4", "haar"):
            analysis_matrix(length, wavelet)  # takes a thousand operators, which fake tensors make slow
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = STEPS[method](sizes)
            step()
            with Launches() as launches:
                step()
    finally:
        forget_constants()  # those made of fake tensors have no data
    return launches


def main() -> None:
    """Print the counts of every term."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patch", type=int, nargs="+", default=[128, 128, 128])
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--reduction", type=int, default=4)
    options.add_argument("--classes", type=int, default=4)
    options.add_argument("--methods", nargs="+", default=list(STEPS), choices=list(STEPS))
    options.add_argument("--operators", action="store_true", help="print the counts of every operator as well")
    chosen = options.parse_args()
    sizes = Sizes(tuple(chosen.patch), chosen.batch, chosen.reduction, chosen.classes)
    print(f"{'term':<26}{'kernels':>8}{'GB read':>9}{'written':>9}{'both':>8}")
    for method in chosen.methods:
        launches = count(method, sizes)
        print(f"{method:<26}{launches.count:>8,}{launches.read / 1e9:>9.2f}{launches.written / 1e9:>9.2f}"
              f"{launches.gigabytes:>8.2f}")  # fmt: skip
        if chosen.operators:
            for name, number in launches.kernels.most_common():
                print(f"    {name:<30}{number:>6,}{launches.traffic[name] / 1e9:>8.2f} GB")


if __name__ == "__main__":
    main()
