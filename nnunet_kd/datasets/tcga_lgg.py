"""TCGA low-grade glioma, the Kaggle copy; data of SAM-DRA-UNet's Table 1."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.datasets.conversion import Case, Description, Format, Options, Target, entries
from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture
from nnunet_kd.datasets.volumes import write_image

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")


def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
    """A case a slice, or a case a patient."""
    folder = source / "kaggle_3m" if (source / "kaggle_3m").is_dir() else source
    cases = []
    for patient in entries(folder):
        if not patient.is_dir() or not patient.name.upper().startswith("TCGA_"):
            continue
        slices = [path for path in entries(patient) if _number(path) is not None]
        pairs = [(path, path.with_name(f"{path.stem}_mask{path.suffix}")) for path in sorted(slices, key=_number)]  # type: ignore[arg-type]
        lost = next((mask for _, mask in pairs if not mask.is_file()), None)
        if options.volumes:
            problem = None if lost is None else f"there is no mask {lost}"
            problem = problem if pairs else f"there are no slices in {patient}"
            cases.append(Case(patient.name, {"slices": pairs}, problem=problem))
            continue
        for image, mask in pairs:
            problem = None if mask.is_file() else f"there is no mask {mask}"
            cases.append(Case(image.stem, {"slices": [(image, mask)]}, group=patient.name, problem=problem))
    return cases, []


def _number(path: Path) -> int | None:
    """Of a slice; ``None`` for a mask or another file."""
    found = re.fullmatch(r".*_(\d+)\.tiff?", path.name, flags=re.IGNORECASE)
    return None if found is None else int(found[1])


def describe(options: Options) -> Description:
    """Three channels."""
    return Description(CHANNELS, {"background": 0, "tumour": 1}, ".nii.gz" if options.volumes else ".png")


def convert(case: Case, target: Target, options: Options) -> None:
    """A PNG of three channels, or three volumes; the files carry no voxel size, so these have 1 x 1 x 1."""
    pictures, masks = [], []
    for image, mask in case.files["slices"]:
        pictures.append(read_picture(image, "RGB"))
        masks.append(read_mask(mask, pictures[-1].shape))
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(f"{image} has another size than the slices before it")
    if not options.volumes:
        write_picture(pictures[0], target.image(case))
        write_picture(masks[0].astype(np.uint8), target.label(case))
        return
    volume = np.stack(pictures)
    for channel in range(3):
        write_image(sitk.GetImageFromArray(volume[..., channel]), target.image(case, channel))
    write_image(sitk.GetImageFromArray(np.stack(masks).astype(np.uint8)), target.label(case))


FORMAT = Format(
    id=504,
    name="TCGALGG",
    modality="MRI slices: pre-contrast, FLAIR, post-contrast as RGB",
    size="3929 slices of 110 patients",
    licence="CC BY-NC-SA 4.0",
    where="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
    layout="kaggle_3m/TCGA_*/TCGA_*_N.tif, TCGA_*_N_mask.tif",
    find=find,
    describe=describe,
    convert=convert,
    options=("volumes",),
)
