"""BraTS 2021; the data of SAM-DRA-UNet's Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.brats import BraTS


class BraTS2021(BraTS):
    """Adult glioma before treatment. The published label 4 is 3 here."""

    id = 503
    name = "BraTS2021"
    modality = "MRI: T1, T1ce, T2, FLAIR"
    size = "1251 with labels"
    licence = "BraTS terms: research use, not to be passed on"
    where = "https://www.synapse.org/Synapse:syn25829067"
    layout = "BraTS2021_xxxxx/BraTS2021_xxxxx_{t1,t1ce,t2,flair,seg}.nii.gz"
    prefix = "BraTS2021_"
    modalities = ("t1", "t1ce", "t2", "flair")
    separator = "_"
    label_values: ClassVar[Mapping[int, int]] = {0: 0, 1: 1, 2: 2, 4: 3}

    def describe(self) -> Description:
        """Describe four channels, with classes or the regions of the challenge."""
        channels = ("T1", "T1ce", "T2", "FLAIR")
        if not self.regions:
            return Description(channels, {"background": 0, "NCR": 1, "ED": 2, "ET": 3}, ".nii.gz")
        regions: dict[str, int | list[int]] = {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
        return Description(channels, regions, ".nii.gz", regions_class_order=(2, 1, 3))
