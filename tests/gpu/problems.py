"""Every loss with inputs of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_kd.losses import (
    CIRKDLoss,
    CWDLoss,
    DCDLoss,
    DPRDLoss,
    DualSelfLoss,
    FitNetsLoss,
    FocalDiceLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsKDLoss,
    PerceptualLoss,
    ReCoKDLoss,
    RKDLoss,
    SKDLoss,
)
from nnunet_kd.networks.pretrained import RANDOM, VGG16_ENDS, vgg16_layers
from tests.losses.random_maps import random_maps, random_valid

NARROW, WIDE, CLASSES = 8, 24, 4


@dataclass(frozen=True)
class Problem:
    """A loss with its inputs.

    Attributes:
        value: The adapter, or whatever is converted together with the tensors, and the tensors -> the scalar.
        adapter: What trains with the student, or is frozen.
        tensors: The inputs, in float64 where they are of floating type.
        learning: How many of the tensors, counted from the first, get a gradient.
    """

    value: Callable[[nn.Module, Sequence[Tensor]], Tensor]
    adapter: nn.Module
    tensors: Sequence[Tensor]
    learning: int = 1

    def solve(self, adapter: nn.Module, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the value and all gradients, those of the tensors first."""
        learning = [tensor.requires_grad_() for tensor in tensors[: self.learning]]
        value = self.value(adapter, tensors)
        leaves = [*learning, *(parameter for parameter in adapter.parameters() if parameter.requires_grad)]
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        return value, [one for one in gradients if one is not None]


Grid = tuple[int, ...]


def _of_features(loss: FitNetsLoss | DCDLoss | FreeKDLoss) -> Callable[[Grid], Problem]:
    def make(grid: Grid) -> Problem:
        torch.manual_seed(0)
        adapter = loss.projection(NARROW, WIDE, len(grid))
        return Problem(lambda phi, maps: loss(*maps, phi), adapter, [random_maps(grid, NARROW, 1), _teacher(grid)])

    return make


def _teacher(grid: Grid) -> Tensor:
    return random_maps(grid, WIDE, 2)


def _tuning(grid: Grid) -> Problem:
    torch.manual_seed(0)
    loss = FreeKDLoss()

    def value(adapter: nn.Module, maps: Sequence[Tensor]) -> Tensor:
        kept, redundancy = loss.tuning(maps[0], adapter)  # type: ignore[arg-type]
        return kept.to(redundancy.dtype).square().mean() + redundancy

    return Problem(value, loss.projection(NARROW, WIDE, len(grid)), [_teacher(grid)], learning=0)


def _ifvd(grid: Grid) -> Problem:
    classes = torch.randint(-1, CLASSES, (2, *grid), generator=torch.Generator().manual_seed(3))
    maps = [random_maps(grid, NARROW, 1), _teacher(grid), classes]
    loss = IFVDLoss()
    return Problem(lambda _, given: loss(*given[:2], classes=given[2], num_classes=CLASSES), nn.Identity(), maps)


def _of_relations(loss: RKDLoss | SKDLoss) -> Callable[[Grid], Problem]:
    def make(grid: Grid) -> Problem:
        return Problem(lambda _, maps: loss(*maps), nn.Identity(), [random_maps(grid, NARROW, 1), _teacher(grid)])

    return make


def _cirkd(grid: Grid) -> Problem:
    """Memories that keep every voxel and of which every entry is drawn, so that nothing depends on random numbers."""
    torch.manual_seed(0)
    classes = torch.randint(-1, CLASSES, (2, *grid), generator=torch.Generator().manual_seed(3))
    loss = CIRKDLoss(pixel_memory=1100, region_memory=8, pixels=512, pixel_contrasts=4400)
    maps = [random_maps(grid, NARROW, 1), _teacher(grid), classes]
    return Problem(
        lambda memory, given: loss(*given[:2], memory, classes=given[2], num_classes=CLASSES),
        loss.projection(NARROW, WIDE, len(grid), CLASSES),
        maps,
    )


def _dprd(grid: Grid) -> Problem:
    torch.manual_seed(0)
    loss, maps = DPRDLoss(16), [random_maps(grid, NARROW, 1), _teacher(grid), random_valid(grid)]
    adapter = loss.projection(NARROW, WIDE, len(grid))
    return Problem(lambda layers, given: loss(*given[:2], layers, foreground=given[2]), adapter, maps)  # type: ignore[arg-type]


def _reco_kd(grid: Grid) -> Problem:
    torch.manual_seed(0)
    loss, target = ReCoKDLoss(), torch.randint(0, CLASSES, (2, 1, *grid), generator=torch.Generator().manual_seed(3))
    maps = [random_maps(grid, NARROW, 1), _teacher(grid), target, random_valid(grid)]

    def value(adapter: nn.Module, given: Sequence[Tensor]) -> Tensor:
        return loss(*given[:2], adapter, target=given[2], valid=given[3], num_classes=CLASSES)  # type: ignore[arg-type]

    return Problem(value, loss.projection(NARROW, WIDE, len(grid)), maps)


def _of_logits(loss: CWDLoss | LogitsKDLoss, regions: bool) -> Callable[[Grid], Problem]:
    def make(grid: Grid) -> Problem:
        maps = [3 * random_maps(grid, CLASSES, 1), 3 * random_maps(grid, CLASSES, 2), random_valid(grid)]
        return Problem(lambda _, given: loss(*given[:2], regions, given[2]), nn.Identity(), maps)

    return make


def _focal_dice(grid: Grid) -> Problem:
    target = torch.randint(0, CLASSES, (2, 1, *grid), generator=torch.Generator().manual_seed(3))
    loss = FocalDiceLoss()
    return Problem(lambda _, given: loss(*given), nn.Identity(), [3 * random_maps(grid, CLASSES, 1), target])


def _dual_self(grid: Grid) -> Problem:
    torch.manual_seed(0)
    loss, widths = DualSelfLoss(), [NARROW, WIDE]
    grids = [grid, tuple(-(-size // 2) for size in grid)]
    maps = [random_maps(one, width, seed) for seed in (1, 2) for one, width in zip(grids, widths, strict=True)]
    adapters = loss.adapters(widths, widths, len(grid))
    return Problem(lambda given, levels: loss(levels[:2], levels[2:], given), adapters, maps, learning=4)  # type: ignore[arg-type]


def _perceptual(grid: Grid) -> Problem:
    vgg = vgg16_layers(RANDOM)
    for module in vgg:
        module.requires_grad_(False)
    maps = [random_maps(grid, NARROW, 1), random_maps(grid, NARROW, 2)]
    return Problem(lambda given, pair: PerceptualLoss(given, VGG16_ENDS)(*pair), vgg, maps)  # type: ignore[arg-type]


# name -> how to make the problem on a grid
PROBLEMS: dict[str, Callable[[Grid], Problem]] = {
    "FitNets": _of_features(FitNetsLoss()),
    "DCD": _of_features(DCDLoss()),
    "DCD as published": _of_features(DCDLoss(transform="published")),
    "FreeKD": _of_features(FreeKDLoss()),
    "FreeKD's tuning": _tuning,
    "IFVD": _ifvd,
    "DPRD": _dprd,
    "ReCoKD": _reco_kd,
    "CWD": _of_logits(CWDLoss(), False),
    "RKD": _of_relations(RKDLoss()),
    "CIRKD": _cirkd,
    "SKD": _of_relations(SKDLoss()),
    "CWD of regions": _of_logits(CWDLoss(), True),
    "LogitsKD": _of_logits(LogitsKDLoss(), False),
    "LogitsKD of regions": _of_logits(LogitsKDLoss(), True),
    "FocalDice": _focal_dice,
    "DualSelf": _dual_self,
    "Perceptual": _perceptual,
}
PLANE_ONLY = {"Perceptual"}
