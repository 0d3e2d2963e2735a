"""Time SAM with one prompt and with eight on the same slice, whose embedding is computed once.

    python benchmarks/sam_prompts.py [--sam vit_b] [--size 256] [--repeats 3]

The network has its real size and random weights, and the image is random.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import medians

from nnunet_kd.teachers.sam import SamSettings, SamTeacher


def main() -> None:
    """Print seconds per slice and the ratio."""
    from segment_anything import sam_model_registry

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sam", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    options.add_argument("--size", type=int, default=256)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()

    torch.manual_seed(0)
    sam = sam_model_registry[chosen.sam](checkpoint=None).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = SamTeacher(sam, SamSettings(chosen.sam), device)
    size = chosen.size
    image = np.random.default_rng(0).integers(0, 255, (3, size, size), dtype=np.uint8)
    many = np.zeros((8, size, size), dtype=bool)
    for number in range(8):
        top = number * size // 8
        many[number, top : top + size // 10, top : top + size // 5] = True
    seconds = medians(
        {"one": lambda: teacher.slice_logits(image, many[:1]), "eight": lambda: teacher.slice_logits(image, many)},
        chosen.repeats,
        warm_up=1,
    )
    print(
        f"{chosen.sam} on {device}, {torch.get_num_threads()} threads, slice {size} x {size}: one prompt "
        f"{seconds['one']:.2f} s, eight prompts {seconds['eight']:.2f} s, ratio {seconds['eight'] / seconds['one']:.2f}"
    )


if __name__ == "__main__":
    main()
