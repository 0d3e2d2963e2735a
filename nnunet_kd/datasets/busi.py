"""BUSI, breast ultrasound; the data of KD-SAM's Table 1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.drawn_test_set import DrawnTestSet
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture
from nnunet_kd.datasets.source_files import entries

KINDS = ("normal", "benign", "malignant")


@dataclass(frozen=True)
class BUSI(DrawnTestSet):
    """Ultrasound of the breast, in one folder per kind of finding; pictures may have several masks.

    Attributes:
        classes: Whether benign and malignant lesions are two classes.
    """

    id = 510
    name = "BUSI"
    modality = "ultrasound"
    size = "780 (437 benign, 210 malignant, 133 normal)"
    licence = "research use, as published"
    where = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    layout = "{benign,malignant,normal}/KIND (N).png, KIND (N)_mask.png, KIND (N)_mask_1.png"

    classes: bool = option(False, "benign and malignant instead of lesion")

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find the pictures of the three folders with all their masks."""
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
                roles = {"image": image, "masks": masks, "kind": kind}
                cases.append(Case(f"{kind}_{int(number[1]):04d}", roles, problem=problem))
        return self.with_test_set(cases), []

    def describe(self) -> Description:
        """Describe one channel, with one class or two."""
        labels = {"benign": 1, "malignant": 2} if self.classes else {"lesion": 1}
        return Description(("ultrasound",), {"background": 0, **labels}, ".png")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Join all masks of a picture; normal pictures have an empty one."""
        picture = read_picture(case.files["image"], "L")
        inside = np.any([read_mask(path, picture.shape) for path in case.files["masks"]], axis=0)
        label = KINDS.index(case.files["kind"]) if self.classes else 1
        write_picture(picture, raw.image(case))
        write_picture(np.where(inside, label, 0).astype(np.uint8), raw.label(case))
