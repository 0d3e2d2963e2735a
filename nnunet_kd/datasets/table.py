"""All data sets that can be converted, by name. Nothing in this folder imports this file."""

from __future__ import annotations

from nnunet_kd.datasets.base import Dataset
from nnunet_kd.datasets.brats2021 import BraTS2021
from nnunet_kd.datasets.brats2024_gli import BraTS2024GLI
from nnunet_kd.datasets.busi import BUSI
from nnunet_kd.datasets.fcd2023 import FCD2023
from nnunet_kd.datasets.hc18 import FetalHeadHC18
from nnunet_kd.datasets.isic2017 import ISIC2017
from nnunet_kd.datasets.isic2018 import ISIC2018
from nnunet_kd.datasets.isles2022 import ISLES2022
from nnunet_kd.datasets.kvasir_seg import KvasirSEG
from nnunet_kd.datasets.synapse import Synapse
from nnunet_kd.datasets.tcga_lgg import TCGALGG

_BY_NUMBER: tuple[type[Dataset], ...] = (
    BraTS2024GLI,
    ISLES2022,
    BraTS2021,
    TCGALGG,
    FCD2023,
    KvasirSEG,
    ISIC2017,
    ISIC2018,
    FetalHeadHC18,
    BUSI,
    Synapse,
)

DATASETS: dict[str, type[Dataset]] = {dataset.name: dataset for dataset in _BY_NUMBER}
