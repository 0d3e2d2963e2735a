"""Kvasir-SEG, polyps in endoscopy; the data of KD-SAM's Table 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.drawn_test_set import DrawnTestSet
from nnunet_kd.datasets.pictures import write_colour_case
from nnunet_kd.datasets.source_files import entries


@dataclass(frozen=True)
class KvasirSEG(DrawnTestSet):
    """Pictures and masks of the same name in two folders."""

    id = 506
    name = "KvasirSEG"
    modality = "endoscopy, RGB"
    size = "1000"
    licence = "research and education; others ask the authors"
    where = "https://datasets.simula.no/kvasir-seg/"
    layout = "images/*.jpg, masks/*.jpg"

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find the pictures, each with the first mask of its name."""
        if not (source / "images").is_dir():
            return [], []
        cases = []
        for image in entries(source / "images"):
            if image.suffix.lower() not in (".jpg", ".jpeg", ".png"):
                continue
            masks = sorted((source / "masks").glob(f"{image.stem}.*"))
            problem = None if masks else f"there is no mask {source / 'masks' / image.name}"
            cases.append(Case(image.stem, {"image": image, "mask": masks[0] if masks else None}, problem=problem))
        return self.with_test_set(cases), []

    def describe(self) -> Description:
        """Describe red, green and blue in one file, with one class."""
        return Description(("R", "G", "B"), {"background": 0, "polyp": 1}, ".png")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Write both as PNG."""
        write_colour_case(case.files["image"], case.files["mask"], raw.image(case), raw.label(case))
