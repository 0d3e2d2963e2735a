"""ISIC 2018, skin lesions in dermoscopy; data of DSVM-UNet's Table 1."""

from __future__ import annotations

from nnunet_kd.datasets import isic
from nnunet_kd.datasets.conversion import Format

FORMAT = Format(
    id=508,
    name="ISIC2018",
    modality="dermoscopy, RGB",
    size="2594 for training, 100 for validation, 1000 for testing",
    licence="CC BY-NC 4.0",
    where="https://challenge.isic-archive.com/data/#2018",
    layout="ISIC2018_Task1-2_{Training,Validation,Test}_Input/*.jpg, ISIC2018_Task1_*_GroundTruth/*_segmentation.png",
    find=isic.finder("ISIC2018_Task1"),
    describe=isic.describe,
    convert=isic.convert,
)
