"""BraTS 2024, adult glioma after treatment; the data of DCD's Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.brats import BraTS
from nnunet_kd.datasets.dcd_paper import DCDPaper


@dataclass(frozen=True)
class BraTS2024GLI(DCDPaper, BraTS):
    """Adult glioma after treatment, several visits per patient."""

    id = 501
    name = "BraTS2024GLI"
    modality = "MRI: T1n, T1c, T2w, T2f"
    size = "1350 (1080 for training in the DCD paper, 270 held out)"
    licence = "BraTS terms: research use, not to be passed on"
    where = "https://www.synapse.org/Synapse:syn53708249"
    layout = "BraTS-GLI-xxxxx-xxx/BraTS-GLI-xxxxx-xxx-{t1n,t1c,t2w,t2f,seg}.nii.gz"
    test_share = 0.2
    prefix = "BraTS-GLI-"
    modalities = ("t1n", "t1c", "t2w", "t2f")
    separator = "-"
    label_values: ClassVar[Mapping[int, int]] = {label: label for label in range(5)}

    def patient(self, name: str) -> str:
        """Return the name without the number of the visit."""
        return name.rpartition("-")[0]

    def describe(self) -> Description:
        """Describe four channels, with classes as published or the regions of the challenge."""
        channels = ("T1n", "T1c", "T2w", "T2f")
        if not self.regions:
            return Description(channels, {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, ".nii.gz")
        regions: dict[str, int | list[int]] = {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}
        return Description(channels, regions, ".nii.gz", regions_class_order=(2, 1, 3, 4))
