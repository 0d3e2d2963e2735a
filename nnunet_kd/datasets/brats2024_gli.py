"""BraTS 2024, adult glioma after treatment; the data of DCD's Table 1."""

from __future__ import annotations

from nnunet_kd.datasets.brats import converter, finder
from nnunet_kd.datasets.conversion import Description, Format, Options


def describe(options: Options) -> Description:
    """Four channels; classes as published, or the regions of the challenge."""
    channels = ("T1n", "T1c", "T2w", "T2f")
    if not options.regions:
        return Description(channels, {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, ".nii.gz")
    regions: dict[str, int | list[int]] = {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}
    return Description(channels, regions, ".nii.gz", regions_class_order=(2, 1, 3, 4))


FORMAT = Format(
    id=501,
    name="BraTS2024GLI",
    modality="MRI: T1n, T1c, T2w, T2f",
    size="1350 (1080 for training in the DCD paper, 270 held out)",
    licence="BraTS terms: research use, not to be passed on",
    where="https://www.synapse.org/Synapse:syn53708249",
    layout="BraTS-GLI-xxxxx-xxx/BraTS-GLI-xxxxx-xxx-{t1n,t1c,t2w,t2f,seg}.nii.gz",
    find=finder("BraTS-GLI-", ("t1n", "t1c", "t2w", "t2f"), "-", group=lambda name: name.rpartition("-")[0]),
    describe=describe,
    convert=converter({label: label for label in range(5)}),
    options=("regions",),
    test_share=0.2,
)
