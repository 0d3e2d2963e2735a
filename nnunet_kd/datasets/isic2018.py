"""ISIC 2018, skin lesions in dermoscopy; the data of DSVM-UNet's Table 1."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_kd.datasets.isic import ISIC


@dataclass(frozen=True)
class ISIC2018(ISIC):
    """Skin lesions, with official training, validation and test sets."""

    id = 508
    name = "ISIC2018"
    modality = "dermoscopy, RGB"
    size = "2594 for training, 100 for validation, 1000 for testing"
    licence = "CC BY-NC 4.0"
    where = "https://challenge.isic-archive.com/data/#2018"
    layout = "ISIC2018_Task1-2_{Training,Validation,Test}_Input/*.jpg, ISIC2018_Task1_*_GroundTruth/*_segmentation.png"
    prefix = "ISIC2018_Task1"
    test_of_vm_unet = (808, 2694)
