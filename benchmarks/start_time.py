"""Time the pruned start of a student beside the training steps of that student, in one run.

    python benchmarks/start_time.py [--patch 40 56 40] [--channels 1] [--reduction 4 8] [--patches 8] [--repeats 3]

``nnUNetTrainerKD`` fits the initial weights to one patch for every ``nnunet_kd.training.start.TRAINED_PATCHES`` patches
that the training sees. The last number is the time of the fit relative to the forward and backward passes of such a
training, without the loading and augmentation that every step needs too.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from timing import medians
from torch import nn

from nnunet_kd.pruning import prune, selected_weights
from nnunet_kd.training.start import TRAINED_PATCHES

BATCH = 2
WIDTHS = (32, 64, 128, 256)


def unet(widths: Sequence[int], channels: int) -> nn.Module:
    """Build nnU-Net's plain U-Net with four stages."""
    return PlainConvUNet(
        channels, 4, widths, nn.Conv3d, 3, [1, 2, 2, 2], 2, 3, 2, True, nn.InstanceNorm3d, {"affine": True}, None, None,
        nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def main() -> None:
    """Print the seconds per patch and the share for every reduction."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    options.add_argument("--channels", type=int, default=1)
    options.add_argument("--reduction", type=int, nargs="+", default=[4, 8])
    options.add_argument("--patches", type=int, default=8)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    print(f"{torch.get_num_threads()} threads, patch {chosen.patch}, {chosen.patches} patches")
    for reduction in chosen.reduction:
        teacher = unet(WIDTHS, chosen.channels).eval()
        student = unet([max(width // reduction, 8) for width in WIDTHS], chosen.channels)
        student.load_state_dict(selected_weights(teacher, student))
        patches = [torch.randn(BATCH, chosen.channels, *chosen.patch) for _ in range(chosen.patches // BATCH)]
        trained = copy.deepcopy(student).train()

        def step(trained: nn.Module = trained, images: torch.Tensor = patches[0]) -> None:
            sum(scale.square().mean() for scale in trained(images)).backward()

        def start(
            teacher: nn.Module = teacher, student: nn.Module = student, patches: list[torch.Tensor] = patches
        ) -> None:
            prune(teacher, student, patches, heads="classes")

        seconds = medians({"step": step, "start": start}, chosen.repeats)
        patch, trained_patch = seconds["start"] / chosen.patches, seconds["step"] / BATCH
        print(
            f"r = {reduction}: start {patch:.2f} s per patch, training {trained_patch:.3f} s, ratio "
            f"{patch / trained_patch:.1f}; the start is {patch / trained_patch / TRAINED_PATCHES:.1%} of the training",
            flush=True,
        )


if __name__ == "__main__":
    main()
