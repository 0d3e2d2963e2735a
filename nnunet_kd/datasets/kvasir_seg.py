"""Kvasir-SEG, polyps in endoscopy; data of KD-SAM's Table 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_kd.datasets.conversion import Case, Description, Format, Options, Target, entries
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture


def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
    """Images and masks of the same name in two folders."""
    if not (source / "images").is_dir():
        return [], []
    cases = []
    for image in entries(source / "images"):
        if image.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        masks = sorted((source / "masks").glob(f"{image.stem}.*"))
        problem = None if masks else f"there is no mask {source / 'masks' / image.name}"
        cases.append(Case(image.stem, {"image": image, "mask": masks[0] if masks else None}, problem=problem))
    return cases, []


def describe(options: Options) -> Description:
    """Red, green and blue in one file."""
    return Description(("R", "G", "B"), {"background": 0, "polyp": 1}, ".png")


def convert(case: Case, target: Target, options: Options) -> None:
    """As PNG."""
    write_coloured(case.files["image"], case.files["mask"], case, target)


def write_coloured(image: Path, mask: Path, case: Case, target: Target) -> None:
    """A colour picture and its mask as PNG.

    Raises:
        ValueError: For files that cannot be read or do not fit each other.
    """
    picture = read_picture(image, "RGB")
    inside = read_mask(mask, picture.shape)
    write_picture(picture, target.image(case))
    write_picture(inside.astype(np.uint8), target.label(case))


FORMAT = Format(
    id=506,
    name="KvasirSEG",
    modality="endoscopy, RGB",
    size="1000",
    licence="research and education; others ask the authors",
    where="https://datasets.simula.no/kvasir-seg/",
    layout="images/*.jpg, masks/*.jpg",
    find=find,
    describe=describe,
    convert=convert,
)
