"""ISIC 2017, skin lesions in dermoscopy; the data of KD-SAM's Table 1 and DSVM-UNet's Table 1."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_kd.datasets.isic import ISIC


@dataclass(frozen=True)
class ISIC2017(ISIC):
    """Skin lesions, with official training, validation and test sets."""

    id = 507
    name = "ISIC2017"
    modality = "dermoscopy, RGB"
    size = "2000 for training, 150 for validation, 600 for testing"
    licence = "CC0"
    where = "https://challenge.isic-archive.com/data/#2017"
    layout = "ISIC-2017_{Training,Validation,Test_v2}_Data/*.jpg, ISIC-2017_*_Part1_GroundTruth/*_segmentation.png"
    prefix = "ISIC-2017_"
    test_of_vm_unet = (650, 2150)
