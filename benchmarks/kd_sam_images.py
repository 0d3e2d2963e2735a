"""Time KD-SAM beside SAM ViT-B and ViT-H, per image, from the picture to its masks.

    python benchmarks/kd_sam_images.py [--sams vit_b vit_h] [--size 512] [--repeats 3]

The networks have their real sizes and random weights, and the picture is random. SAM runs its image encoder, and its
mask decoder for one box, through the package's predictor; KD-SAM segments one structure without a prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import medians

from nnunet_kd.networks.kd_sam import KDSAM
from nnunet_kd.teachers.sam import SamSettings, SamTeacher


def main() -> None:
    """Print seconds per image, parameters of the encoders, and ratios."""
    from segment_anything import sam_model_registry

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sams", nargs="+", default=["vit_b", "vit_h"], choices=("vit_b", "vit_l", "vit_h"))
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = chosen.size
    picture = np.random.default_rng(0).integers(0, 255, (3, size, size), dtype=np.uint8)
    structure = np.zeros((1, size, size), dtype=bool)
    structure[0, size // 3 : size // 2, size // 3 : size // 2] = True
    student = KDSAM(3, 2).eval().to(device)
    images = torch.from_numpy(picture[None].astype(np.float32) / 255)

    def run_student() -> None:
        with torch.inference_mode(), torch.autocast("cuda", enabled=device.type == "cuda"):
            student(images.to(device)).float().cpu()

    def asking(name: str) -> tuple[Any, Callable[[], object]]:
        sam = sam_model_registry[name](checkpoint=None).eval()
        teacher = SamTeacher(sam, SamSettings(name), device)
        return sam.image_encoder, lambda: teacher.slice_logits(picture, structure)

    encoders, candidates = {"KD-SAM": student.encoder}, {"KD-SAM": run_student}
    for name in chosen.sams:
        encoders[name], candidates[name] = asking(name)
    seconds = medians(candidates, chosen.repeats, warm_up=1)
    print(f"{device}, {torch.get_num_threads()} threads, one picture of {size} x {size}, {chosen.repeats} repeats")
    print(f"{'':<8} {'encoder (M)':>12} {'s / image':>10} {'/ KD-SAM':>9}")
    for name, time in seconds.items():
        millions = sum(parameter.numel() for parameter in encoders[name].parameters()) / 1e6
        print(f"{name:<8} {millions:>12.1f} {time:>10.2f} {time / seconds['KD-SAM']:>9.1f}")


if __name__ == "__main__":
    main()
