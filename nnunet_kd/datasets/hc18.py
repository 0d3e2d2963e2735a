"""HC18, the fetal head in ultrasound; the data of KD-SAM's Table 1."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from skimage.morphology import convex_hull_image

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.drawn_test_set import DrawnTestSet
from nnunet_kd.datasets.pictures import read_mask, read_picture
from nnunet_kd.datasets.source_files import entries
from nnunet_kd.datasets.volumes import write_image


@dataclass(frozen=True)
class FetalHeadHC18(DrawnTestSet):
    """Pictures with the outline of the head, an ellipse, and the size of their pixels in a table."""

    id = 509
    name = "FetalHeadHC18"
    modality = "ultrasound"
    size = "999 with outlines"
    licence = "CC BY 4.0"
    where = "https://zenodo.org/records/1327317"
    layout = "training_set/NNN_{,2,3}HC.png, NNN_{,2,3}HC_Annotation.png, training_set_pixel_size_and_HC.csv"

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find pictures with the outline beside them; pictures of one examination are a group."""
        folder = source / "training_set"
        if not folder.is_dir():
            return [], []
        sizes = _pixel_sizes(source)
        cases = []
        for image in entries(folder):
            if not image.stem.upper().endswith("HC") or image.suffix.lower() != ".png":
                continue
            outline = image.with_name(f"{image.stem}_Annotation.png")
            size = sizes.get(image.name.lower())
            problem = None if outline.is_file() else f"there is no outline {outline}"
            if size is None:
                problem = f"{source} has no table with the pixel size of {image.name}"
            files = {"image": image, "outline": outline, "size": size}
            examination = image.stem.partition("_")[0]  # 010_HC and 010_2HC show the same head
            cases.append(Case(image.stem, files, group=examination, problem=problem))
        return self.with_test_set(cases), []

    def describe(self) -> Description:
        """Describe one channel in NIfTI files, which hold the pixel size."""
        return Description(("ultrasound",), {"background": 0, "head": 1}, ".nii.gz")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Fill the outline, also where the border of the picture cuts it."""
        picture = read_picture(case.files["image"], "L")
        outline = read_mask(case.files["outline"], picture.shape)
        if not outline.any():
            raise ValueError(f"{case.files['outline']} is empty")
        inside = convex_hull_image(outline).astype(np.uint8)
        for array, path in ((picture, raw.image(case)), (inside, raw.label(case))):
            image = sitk.GetImageFromArray(np.ascontiguousarray(array))
            image.SetSpacing([case.files["size"]] * 2)
            write_image(image, path)


def _pixel_sizes(source: Path) -> dict[str, float]:
    """Return name of a picture -> mm.

    The test set has a table of its own, which is not read: its pictures have the same names.
    """
    sizes = {}
    for path in entries(source):
        name = path.name.lower()
        if not name.endswith(".csv") or "pixel_size" not in name or name.startswith("test"):
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no table in UTF-8") from None
        for number, row in enumerate(csv.reader(text.splitlines())):
            if number and len(row) > 1:
                try:
                    size = float(row[1])
                except ValueError:
                    size = 0.0
                if not 0 < size < math.inf:
                    raise ValueError(f"{path}, line {number + 1}: {row[1]!r} is no pixel size")
                sizes[row[0].strip().lower()] = size
    return sizes
