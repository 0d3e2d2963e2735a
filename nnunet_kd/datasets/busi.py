"""BUSI, breast ultrasound; data of KD-SAM's Table 1."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from nnunet_kd.datasets.conversion import Case, Description, Format, Options, Target, entries
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture

KINDS = ("normal", "benign", "malignant")


def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
    """Pictures of the three folders with all their masks."""
    cases = []
    for folder in entries(source):
        kind = folder.name.lower()
        if not folder.is_dir() or kind not in KINDS:
            continue
        files = [path for path in entries(folder) if path.suffix.lower() == ".png"]
        for image in files:
            number = re.fullmatch(r".*\((\d+)\)", image.stem)
            if number is None:
                continue
            masks = [path for path in files if re.fullmatch(re.escape(image.stem) + r"_mask(_\d+)?", path.stem)]
            problem = None if masks else f"there is no mask of {image}"
            cases.append(
                Case(f"{kind}_{int(number[1]):04d}", {"image": image, "masks": masks, "kind": kind}, problem=problem)
            )
    return cases, []


def describe(options: Options) -> Description:
    """One channel; lesion, or benign and malignant."""
    labels = {"benign": 1, "malignant": 2} if options.classes else {"lesion": 1}
    return Description(("ultrasound",), {"background": 0, **labels}, ".png")


def convert(case: Case, target: Target, options: Options) -> None:
    """All masks of a picture are one; normal pictures have an empty one."""
    picture = read_picture(case.files["image"], "L")
    inside = np.any([read_mask(path, picture.shape) for path in case.files["masks"]], axis=0)
    label = KINDS.index(case.files["kind"]) if options.classes else 1
    write_picture(picture, target.image(case))
    write_picture(np.where(inside, label, 0).astype(np.uint8), target.label(case))


FORMAT = Format(
    id=510,
    name="BUSI",
    modality="ultrasound",
    size="780 (437 benign, 210 malignant, 133 normal)",
    licence="research use, as published",
    where="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    layout="{benign,malignant,normal}/KIND (N).png, KIND (N)_mask.png, KIND (N)_mask_1.png",
    find=find,
    describe=describe,
    convert=convert,
    options=("classes",),
)
