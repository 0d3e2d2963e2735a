"""BraTS 2021; data of SAM-DRA-UNet's Table 1."""

from __future__ import annotations

from nnunet_kd.datasets.brats import converter, finder
from nnunet_kd.datasets.conversion import Description, Format, Options


def describe(options: Options) -> Description:
    """Four channels; classes (the published label 4 is 3 here), or the regions of the challenge."""
    channels = ("T1", "T1ce", "T2", "FLAIR")
    if not options.regions:
        return Description(channels, {"background": 0, "NCR": 1, "ED": 2, "ET": 3}, ".nii.gz")
    regions: dict[str, int | list[int]] = {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
    return Description(channels, regions, ".nii.gz", regions_class_order=(2, 1, 3))


FORMAT = Format(
    id=503,
    name="BraTS2021",
    modality="MRI: T1, T1ce, T2, FLAIR",
    size="1251 with labels",
    licence="BraTS terms: research use, not to be passed on",
    where="https://www.synapse.org/Synapse:syn25829067",
    layout="BraTS2021_xxxxx/BraTS2021_xxxxx_{t1,t1ce,t2,flair,seg}.nii.gz",
    find=finder("BraTS2021_", ("t1", "t1ce", "t2", "flair"), "_", group=lambda name: None),
    describe=describe,
    convert=converter({0: 0, 1: 1, 2: 2, 4: 3}),
    options=("regions",),
)
