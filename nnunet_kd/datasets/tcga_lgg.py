"""TCGA low-grade glioma, the copy on Kaggle; the data of SAM-DRA-UNet's Table 1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture
from nnunet_kd.datasets.source_files import entries
from nnunet_kd.datasets.volumes import write_image


@dataclass(frozen=True)
class TCGALGG(Dataset):
    """One folder per patient, of numbered slices in colour.

    Attributes:
        volumes: Whether a case is the stack of all slices of a patient instead of one slice.
    """

    id = 504
    name = "TCGALGG"
    modality = "MRI slices: pre-contrast, FLAIR, post-contrast as RGB"
    size = "3929 slices of 110 patients"
    licence = "CC BY-NC-SA 4.0"
    where = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
    layout = "kaggle_3m/TCGA_*/TCGA_*_N.tif, TCGA_*_N_mask.tif"

    volumes: bool = option(False, "one volume per patient instead of slices")

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find one case per slice, grouped by patient, or one case per patient."""
        folder = source / "kaggle_3m" if (source / "kaggle_3m").is_dir() else source
        cases = []
        for patient in entries(folder):
            if not patient.is_dir() or not patient.name.upper().startswith("TCGA_"):
                continue
            slices = [(number, path) for path in entries(patient) if (number := _number(path)) is not None]
            pairs = [(path, path.with_name(f"{path.stem}_mask{path.suffix}")) for _, path in sorted(slices)]
            if self.volumes:
                lost = next((mask for _, mask in pairs if not mask.is_file()), None)
                problem = None if lost is None else f"there is no mask {lost}"
                problem = problem if pairs else f"there are no slices in {patient}"
                cases.append(Case(patient.name, {"slices": pairs}, problem=problem))
                continue
            for image, mask in pairs:
                problem = None if mask.is_file() else f"there is no mask {mask}"
                cases.append(Case(image.stem, {"slices": [(image, mask)]}, group=patient.name, problem=problem))
        return cases, []

    def describe(self) -> Description:
        """Describe three channels, in one file or in three, with one class."""
        channels = ("pre-contrast", "FLAIR", "post-contrast")
        return Description(channels, {"background": 0, "tumour": 1}, ".nii.gz" if self.volumes else ".png")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Write a PNG of three channels, or three volumes of 1 mm voxels: the files carry no voxel size."""
        pictures, masks = [], []
        for image, mask in case.files["slices"]:
            pictures.append(read_picture(image, "RGB"))
            masks.append(read_mask(mask, pictures[-1].shape))
            if pictures[-1].shape != pictures[0].shape:
                raise ValueError(f"{image} has another size than the slices before it")
        if not self.volumes:
            write_picture(pictures[0], raw.image(case))
            write_picture(masks[0].astype(np.uint8), raw.label(case))
            return
        volume = np.stack(pictures)
        for channel in range(3):
            write_image(sitk.GetImageFromArray(volume[..., channel]), raw.image(case, channel))
        write_image(sitk.GetImageFromArray(np.stack(masks).astype(np.uint8)), raw.label(case))


def _number(path: Path) -> int | None:
    """Return the number of a slice; ``None`` for a mask or another file."""
    found = re.fullmatch(r".*_(\d+)\.tiff?", path.name, flags=re.IGNORECASE)
    return None if found is None else int(found[1])
