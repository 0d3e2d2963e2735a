"""All data sets that can be converted."""

from nnunet_kd.datasets import (
    brats2021,
    brats2024_gli,
    busi,
    fcd2023,
    hc18,
    isic2017,
    isic2018,
    isles2022,
    kvasir_seg,
    synapse,
    tcga_lgg,
)
from nnunet_kd.datasets.conversion import Format

_MODULES = (
    brats2024_gli,
    isles2022,
    brats2021,
    tcga_lgg,
    fcd2023,
    kvasir_seg,
    isic2017,
    isic2018,
    hc18,
    busi,
    synapse,
)

FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
