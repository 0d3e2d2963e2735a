"""Synapse, the abdominal CT of BTCV; the data of DSVM-UNet's Table 2."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.source_files import entries, find_file
from nnunet_kd.datasets.volumes import write_case

ORGANS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "oesophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic veins": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}
# The papers' tables have them in this order.
EIGHT = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
# TransUNet's lists_Synapse/test_vol.txt; the other 18 are for training.
TEST_OF_TRANSUNET = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)


@dataclass(frozen=True)
class Synapse(Dataset):
    """``imgNNNN`` and ``labelNNNN`` in two folders, in Hounsfield units.

    Attributes:
        organs: How many organs are labelled: all 13, or the 8 of the papers' tables.
        transunet_split: Whether 12 cases are for testing, as in the papers' tables.
    """

    id = 511
    name = "Synapse"
    modality = "CT"
    size = "30 with labels"
    licence = "BTCV terms: registration at Synapse"
    where = "https://www.synapse.org/Synapse:syn3193805"
    layout = "img/imgNNNN.nii.gz, label/labelNNNN.nii.gz"

    organs: Literal[8, 13] = option(13, "how many (default: 13)")
    transunet_split: bool = option(
        False, "the published split of TransUNet and its successors: 18 cases for training, 12 for testing"
    )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The organs in the order of our label values, which begin at 1."""
        return EIGHT if self.organs == 8 else tuple(ORGANS)

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find images with the label of the same number."""
        if not (source / "img").is_dir():
            return [], []
        cases = []
        for image in entries(source / "img"):
            number = re.fullmatch(r"img(\d+)\.nii(\.gz)?", image.name, flags=re.IGNORECASE)
            if number is None:
                continue
            name = f"label{number[1]}.nii"
            label = find_file(source / "label", f"{name}.gz", name)
            problem = None if label is not None else f"there is no label {source / 'label' / name}.gz"
            test = self.transunet_split and int(number[1]) in TEST_OF_TRANSUNET
            cases.append(Case(f"synapse_{number[1]}", {"image": image, "label": label}, test=test, problem=problem))
        return cases, []

    def describe(self) -> Description:
        """Describe one channel, with 13 classes or 8."""
        labels = {name: number for number, name in enumerate(("background", *self.wanted))}
        return Description(("CT",), labels, ".nii.gz")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Keep the image as it is; organs that are not wanted become background."""
        values = {name: value for value, name in enumerate(self.wanted, 1)}
        mapping = {0: 0, **{number: values.get(name, 0) for name, number in ORGANS.items()}}
        write_case([case.files["image"]], case.files["label"], mapping, [raw.image(case)], raw.label(case))
