"""Time a training step on the CPU with the teacher in float32 and in bfloat16, in one run.

    python benchmarks/teacher_precision.py [--patch 48 48 32] [--batch 2] [--methods LogitsKD DCD] [--repeats 7]

The script times the teacher's forward pass and the whole step. A ratio above 1 means that bfloat16 is faster, as on
CPUs that have instructions for it (Linux: ``avx512_bf16`` or ``amx_bf16`` in /proc/cpuinfo).
"""

from __future__ import annotations

import argparse

import torch
from timing import medians
from train_step import random_batch, scratch_experiment, trainer


def main() -> None:
    """Print milliseconds and ratio for every method."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patch", type=int, nargs=3, default=[48, 48, 32])
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--methods", nargs="+", default=["LogitsKD", "DCD"])
    options.add_argument("--repeats", type=int, default=7)
    chosen = options.parse_args()
    step = random_batch(chosen.patch, chosen.batch)
    with scratch_experiment(chosen.patch, chosen.batch):
        print(f"{torch.get_num_threads()} threads, batch {chosen.batch}, patch {chosen.patch}")
        for method in chosen.methods:
            sides = {}
            for precision in (None, "bfloat16"):
                made = trainer(method, chosen.patch, chosen.batch)
                made.current_epoch = made.num_epochs - 1  # past the ramp
                made.distiller.teacher.precision = precision
                logits = any(term.reads_logits for term in made.preparation.terms)
                sides[f"teacher {precision}"] = lambda made=made, logits=logits: made.distiller.teacher(
                    step["data"], logits
                )
                sides[f"step {precision}"] = lambda made=made: made.train_step(step)
            seconds = medians(sides, chosen.repeats)
            for what in ("teacher", "step"):
                usual, faster = seconds[f"{what} None"], seconds[f"{what} bfloat16"]
                print(
                    f"{method}, {what}: float32 {1000 * usual:.0f} ms, bfloat16 {1000 * faster:.0f} ms, ratio "
                    f"{usual / faster:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
