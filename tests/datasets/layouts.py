"""A few synthetic files in the layout each data set is published in, with what is odd about the real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

# A rotation about the first axis, as scanners give it; columns are the directions of x, y, z.
TILTED = (1.0, 0.0, 0.0, 0.0, 0.96, -0.28, 0.0, 0.28, 0.96)
SHAPE = (12, 22, 18)  # z, y, x
LANDMARK = (4, 15, 6)


def volume(array, spacing=(1.1, 0.9, 2.5), origin=(-30.5, 12.25, 4.0), direction=TILTED):
    """Return ``(z, y, x)`` as an image somewhere in space; spacing x, y, z."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def brain(seed, shape=SHAPE, dtype=np.int16, modality=""):
    """Return noise that differs between modalities, with one bright voxel that is easily found again."""
    array = np.random.default_rng([seed, *modality.encode()]).integers(100, 200, shape).astype(dtype)
    array[tuple(i * n // m for i, n, m in zip(LANDMARK, shape, SHAPE, strict=True))] = 1000
    return array


def labels(values, shape=SHAPE, dtype=np.uint8):
    """Return one block per value, beside each other."""
    array = np.zeros(shape, dtype)
    for number, value in enumerate(values):
        array[2:8, 3 : shape[1] // 2, 2 + 3 * number : 5 + 3 * number] = value
    return array


def write(image, path):
    """Write a volume or a picture, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, sitk.Image):
        sitk.WriteImage(image, str(path), True)
    else:
        Image.fromarray(image).save(path)


def clutter(folder: Path) -> None:
    """Add what desktops leave behind."""
    for name in (".DS_Store", "._thing.nii.gz", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0junk")
    beside = folder / "__MACOSX" / folder.name  # of a zip file made there
    for path in [path for path in folder.iterdir() if path.is_file()]:
        beside.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, beside / path.name)


def brats2024(root: Path) -> None:
    """Two visits of a patient; a label stored as float; capital letters; a case without labels, as for validation."""
    for number, name in enumerate(("00005-100", "00005-101", "00006-100", "00007-100", "00008-100", "00009-100")):
        folder = root / f"BraTS-GLI-{name}"
        for modality in ("t1n", "t1c", "t2w", "t2f"):
            spelt = modality.upper() if number == 2 else modality
            write(volume(brain(number, modality=modality)), folder / f"BraTS-GLI-{name}-{spelt}.nii.gz")
        dtype = np.float32 if number == 1 else np.uint8
        write(volume(labels((1, 2, 3, 4), dtype=dtype)), folder / f"BraTS-GLI-{name}-seg.nii.gz")
        clutter(folder)
    for modality in ("t1n", "t1c", "t2w", "t2f"):
        write(volume(brain(9)), root / "BraTS-GLI-99999-000" / f"BraTS-GLI-99999-000-{modality}.nii.gz")
    clutter(root)


def brats2021(root: Path) -> None:
    """Label 4, and no 3; one case in uncompressed NIfTI."""
    for number in range(3):
        name = f"BraTS2021_{number:05d}"
        ending = "nii" if number == 1 else "nii.gz"
        for modality in ("t1", "t1ce", "t2", "flair"):
            write(volume(brain(number, modality=modality)), root / name / f"{name}_{modality}.{ending}")
        write(volume(labels((1, 2, 4))), root / name / f"{name}_seg.{ending}")
    clutter(root)


FLAIR_SHAPE = (9, 30, 26)
FLAIR = {"spacing": (0.8, 0.75, 3.2), "origin": (-30.0, 12.0, 4.2)}


def isles2022(root: Path) -> None:
    """DWI and ADC in float64 on one grid, the FLAIR on another."""
    for number in range(1, 6):
        name = f"sub-strokecase{number:04d}"
        for role in ("adc", "dwi"):
            path = root / "rawdata" / name / "ses-0001" / "dwi" / f"{name}_ses-0001_{role}.nii.gz"
            write(volume(brain(number, dtype=np.float64, modality=role)), path)
        flair = volume(brain(number, FLAIR_SHAPE, np.float32), **FLAIR)
        write(flair, root / "rawdata" / name / "ses-0001" / "anat" / f"{name}_ses-0001_FLAIR.nii.gz")
        mask = root / "derivatives" / name / "ses-0001" / f"{name}_ses-0001_msk.nii.gz"
        write(volume(labels((1,), dtype=np.uint16)), mask)
    clutter(root / "rawdata")


def tcga_lgg(root: Path) -> None:
    """Two patients' slices, numbered without leading zeros."""
    generator = np.random.default_rng(0)
    for patient in range(6):
        name = f"TCGA_CS_494{patient}_19960909"
        for number in (1, 2, 10):
            picture = generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)
            picture[0, 0] = number
            mask = np.zeros((40, 36), np.uint8)
            mask[10:20, 5 : 5 + number] = 255
            write(picture, root / "kaggle_3m" / name / f"{name}_{number}.tif")
            write(mask, root / "kaggle_3m" / name / f"{name}_{number}_mask.tif")
    (root / "kaggle_3m" / "data.csv").write_text("Patient\n")
    clutter(root / "kaggle_3m")


def fcd2023(root: Path) -> None:
    """A T1w on a grid of its own; a subject without T2w; a control without a region."""
    for number in range(1, 5):
        folder = root / f"sub-{number:05d}" / "anat"
        name = f"sub-{number:05d}_acq-x"
        write(volume(brain(number)), folder / f"{name}_T1w.nii.gz")
        write(volume(brain(number, FLAIR_SHAPE, np.float32), **FLAIR), folder / f"{name}_FLAIR.nii.gz")
        if number != 2:
            write(volume(brain(number)), folder / f"{name}_T2w.nii.gz")
        if number != 4:
            region = labels((1,), FLAIR_SHAPE, np.float32)
            write(volume(region, **FLAIR), folder / f"{name}_FLAIR_roi.nii.gz")
    (root / "participants.tsv").write_text("participant_id\n")


def disc(height, width, radius=8):
    """Return the inside of a circle, left of the middle."""
    y, x = np.mgrid[:height, :width]
    return (y - height // 2) ** 2 + (x - width // 3) ** 2 < radius**2


def _colours(seed, height=44, width=52):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def kvasir_seg(root: Path) -> None:
    """Masks as JPEG, in colour, with grey around the edges."""
    for number in range(3):
        write(_colours(number), root / "images" / f"cju{number}.jpg")
        grey = np.where(disc(44, 52), 245, 6).astype(np.uint8)
        write(np.stack([grey] * 3, 2), root / "masks" / f"cju{number}.jpg")
    clutter(root / "images")


def isic2017(root: Path) -> None:
    """Training, validation and test; superpixels beside the pictures."""
    number = 0
    for part, count in (("Training", 3), ("Validation", 2), ("Test_v2", 2)):
        for _ in range(count):
            name = f"ISIC_{number:07d}"
            write(_colours(number), root / f"ISIC-2017_{part}_Data" / f"{name}.jpg")
            write(_colours(number), root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png")
            truth = root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{name}_segmentation.png"
            write(255 * disc(44, 52).astype(np.uint8), truth)
            number += 1
    clutter(root)


def isic2018(root: Path) -> None:
    """Training, and a test part whose masks were not published."""
    for number in range(3):
        name = f"ISIC_{number:07d}"
        write(_colours(number), root / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg")
        truth = root / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png"
        write(255 * disc(44, 52).astype(np.uint8), truth)
    (root / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt").write_text("CC")
    write(_colours(9), root / "ISIC2018_Task1-2_Test_Input" / "ISIC_0000009.jpg")


def hc18(root: Path) -> None:
    """Outlines of ellipses, one cut by the border of its picture."""
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for number in range(3):
        y, x = np.mgrid[:60, :80]
        centre = 40 if number < 2 else 6
        distance = np.hypot((y - 30) / 20, (x - centre) / 30)
        outline = np.where(np.abs(distance - 1) < 0.05, 255, 0).astype(np.uint8)
        write(_colours(number, 60, 80)[..., 0], root / "training_set" / f"00{number}_HC.png")
        write(outline, root / "training_set" / f"00{number}_HC_Annotation.png")
        rows.append(f"00{number}_HC.png,0.{number + 1}5,44.3")
    (root / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows) + "\n")


def busi(root: Path) -> None:
    """Two masks of one picture; masks of one bit; a normal picture."""
    for kind in ("benign", "malignant", "normal"):
        for number in (1, 2):
            write(_colours(number), root / kind / f"{kind} ({number}).png")
            mask = disc(44, 52) & (kind != "normal")
            write(mask, root / kind / f"{kind} ({number})_mask.png")
    second = np.zeros((44, 52), np.uint8)
    second[:5, :5] = 255
    write(second, root / "benign" / "benign (2)_mask_1.png")
    clutter(root / "benign")


def synapse(root: Path) -> None:
    """All 13 organs, the last of them small."""
    for number in (1, 2, 40):
        write(volume(brain(number) - 150), root / "img" / f"img{number:04d}.nii.gz")
        organs = np.zeros(SHAPE, np.uint8)
        for organ in range(1, 14):
            organs[2:8, organ : organ + 1, 3:12] = organ
        write(volume(organs), root / "label" / f"label{number:04d}.nii.gz")


LAYOUTS = {
    "BraTS2024GLI": brats2024,
    "ISLES2022": isles2022,
    "BraTS2021": brats2021,
    "TCGALGG": tcga_lgg,
    "FCD2023": fcd2023,
    "KvasirSEG": kvasir_seg,
    "ISIC2017": isic2017,
    "ISIC2018": isic2018,
    "FetalHeadHC18": hc18,
    "BUSI": busi,
    "Synapse": synapse,
}
