"""ISIC 2017, skin lesions in dermoscopy; data of KD-SAM's Table 1 and DSVM-UNet's Table 1."""

from __future__ import annotations

from nnunet_kd.datasets import isic
from nnunet_kd.datasets.conversion import Format

FORMAT = Format(
    id=507,
    name="ISIC2017",
    modality="dermoscopy, RGB",
    size="2000 for training, 150 for validation, 600 for testing",
    licence="CC0",
    where="https://challenge.isic-archive.com/data/#2017",
    layout="ISIC-2017_{Training,Validation,Test_v2}_Data/*.jpg, ISIC-2017_*_Part1_GroundTruth/*_segmentation.png",
    find=isic.finder("ISIC-2017_"),
    describe=isic.describe,
    convert=isic.convert,
)
