"""TCGA low-grade glioma, the copy on Kaggle; the data of SAM-DRA-UNet's Table 1.

Two versions of this collection are in use:

* Kaggle's "LGG MRI Segmentation", which is converted here: 3929 slices of 110 patients in TIFF files, whose red, green
  and blue are pre-contrast, FLAIR and post-contrast, with one class of tumour.
* TCIA's BraTS-TCGA-LGG: volumes in NIfTI files with T1, T1-Gd, T2 and FLAIR and the three regions of BraTS.

The paper of SAM-DRA-UNet describes the files of the first, the modalities and regions of the second, and "387 MRI
slices from 65 patients" for training, a selection that it does not list. Figures of the converted data are therefore of
other cases than the paper's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture
from nnunet_kd.datasets.source_files import entries
from nnunet_kd.datasets.volumes import write_image

SIZE = 256  # pixels of the paper's slices, in both directions
MEDIAN = 3  # pixels


@dataclass(frozen=True)
class TCGALGG(Dataset):
    """One folder per patient, of numbered slices in colour.

    Attributes:
        volumes: Whether a case is the stack of all slices of a patient instead of one slice.
        paper_preprocessing: Whether slices are prepared as in the paper. nnU-Net standardises the channels anyway.
    """

    id = 504
    name = "TCGALGG"
    modality = "MRI slices: pre-contrast, FLAIR, post-contrast as RGB"
    size = "3929 slices of 110 patients (the paper trains on 387 of 65, which it does not list)"
    licence = "CC BY-NC-SA 4.0"
    where = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
    layout = "kaggle_3m/TCGA_*/TCGA_*_N.tif, TCGA_*_N_mask.tif"

    volumes: bool = option(False, "one volume per patient instead of slices")
    paper_preprocessing: bool = option(
        False,
        "the preprocessing of SAM-DRA-UNet: 256 x 256 pixels and a median filter per channel, of 3 x 3 pixels because "
        "the paper gives no size",
    )

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
        if self.paper_preprocessing:
            pictures, masks = [filtered(one) for one in pictures], [resized(one, nearest=True) for one in masks]
        if not self.volumes:
            write_picture(pictures[0], raw.image(case))
            write_picture(masks[0].astype(np.uint8), raw.label(case))
            return
        volume = np.stack(pictures)
        for channel in range(3):
            write_image(sitk.GetImageFromArray(volume[..., channel]), raw.image(case, channel))
        write_image(sitk.GetImageFromArray(np.stack(masks).astype(np.uint8)), raw.label(case))


def resized(array: np.ndarray, nearest: bool = False) -> np.ndarray:
    """Return a picture ``(y, x, 3)`` or a mask ``(y, x)`` at the paper's size, bilinear unless nearest neighbour."""
    if array.shape[:2] == (SIZE, SIZE):
        return array
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(array).resize((SIZE, SIZE), how))


def filtered(picture: np.ndarray) -> np.ndarray:
    """Return a picture ``(y, x, 3)`` at the paper's size, every channel filtered by its median."""
    return np.asarray(ndimage.median_filter(resized(picture), size=(MEDIAN, MEDIAN, 1)))


def _number(path: Path) -> int | None:
    """Return the number of a slice; ``None`` for a mask or another file."""
    found = re.fullmatch(r".*_(\d+)\.tiff?", path.name, flags=re.IGNORECASE)
    return None if found is None else int(found[1])
