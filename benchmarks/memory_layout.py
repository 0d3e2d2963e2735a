"""Time a training step on the CPU with channels-last weights and with PyTorch's default layout, in one run.

    python benchmarks/memory_layout.py [--patch 32 32 32] [--batch 2] [--methods NoKD DCD] [--repeats 7]

The script trains students of several widths with the given methods. A ratio above 1 means that channels last is
faster.
"""

from __future__ import annotations

import argparse

import torch
from timing import medians
from train_step import random_batch, scratch_experiment, trainer


def main() -> None:
    """Print milliseconds and ratio for every method and width."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patch", type=int, nargs=3, default=[32, 32, 32])
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--methods", nargs="+", default=["NoKD", "DCD"])
    options.add_argument("--repeats", type=int, default=7)
    chosen = options.parse_args()
    step = random_batch(chosen.patch, chosen.batch)
    with scratch_experiment(chosen.patch, chosen.batch):
        print(f"{torch.get_num_threads()} threads, batch {chosen.batch}, patch {chosen.patch}")
        for method in chosen.methods:
            for reduction in (8, 4, 2, 1):
                sides = {}
                for layout in (torch.contiguous_format, torch.channels_last_3d):
                    made = trainer(method, chosen.patch, chosen.batch, reduction)
                    made.current_epoch = made.num_epochs - 1  # past the ramp
                    made.trained().student.to(memory_format=layout)
                    sides[str(layout)] = lambda made=made: made.train_step(step)
                usual, last = medians(sides, chosen.repeats).values()
                widths = made.configuration_manager.network_arch_init_kwargs["features_per_stage"]
                print(f"{method}, widths {widths}: {describe(usual, last)}", flush=True)


def describe(usual: float, last: float) -> str:
    """Format the seconds of both layouts, and their ratio."""
    return f"contiguous {1000 * usual:.0f} ms, channels last {1000 * last:.0f} ms, ratio {usual / last:.2f}"


if __name__ == "__main__":
    main()
