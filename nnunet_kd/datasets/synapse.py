"""Synapse, the abdominal CT of BTCV; data of DSVM-UNet's Table 2."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_kd.datasets.conversion import Case, Description, Format, Options, Target, entries, find_file
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
# In the order of the papers' tables.
EIGHT = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")


def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
    """``imgNNNN`` and ``labelNNNN`` in two folders."""
    if not (source / "img").is_dir():
        return [], []
    cases = []
    for image in entries(source / "img"):
        number = re.fullmatch(r"img(\d+)\.nii(\.gz)?", image.name, flags=re.IGNORECASE)
        if number is None:
            continue
        label = find_file(source / "label", f"label{number[1]}.nii.gz", f"label{number[1]}.nii")
        problem = None if label is not None else f"there is no label {source / 'label' / f'label{number[1]}.nii.gz'}"
        cases.append(Case(f"synapse_{number[1]}", {"image": image, "label": label}, problem=problem))
    return cases, []


def describe(options: Options) -> Description:
    """Hounsfield units; 13 organs or 8."""
    organs = EIGHT if options.organs == 8 else tuple(ORGANS)
    labels = {name: number for number, name in enumerate(("background", *organs))}
    return Description(("CT",), labels, ".nii.gz")


def convert(case: Case, target: Target, options: Options) -> None:
    """The image as it is; organs that are not wanted become background."""
    wanted = EIGHT if options.organs == 8 else tuple(ORGANS)
    mapping = {0: 0, **{number: wanted.index(name) + 1 if name in wanted else 0 for name, number in ORGANS.items()}}
    write_case([case.files["image"]], case.files["label"], mapping, [target.image(case)], target.label(case))


FORMAT = Format(
    id=511,
    name="Synapse",
    modality="CT",
    size="30 with labels",
    licence="BTCV terms: registration at Synapse",
    where="https://www.synapse.org/Synapse:syn3193805",
    layout="img/imgNNNN.nii.gz, label/labelNNNN.nii.gz",
    find=find,
    describe=describe,
    convert=convert,
    options=("organs",),
)
