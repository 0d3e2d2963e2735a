"""The layout the BraTS data sets share: one folder per case, with one NIfTI file per modality and one of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nnunet_kd.datasets.base import Dataset
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.source_files import find_file, folders_below, missing
from nnunet_kd.datasets.volumes import write_case


@dataclass(frozen=True)
class BraTS(Dataset):
    """A data set of folders ``PREFIX*`` with files ``*SEPARATORMODALITY.nii.gz``, all on one grid.

    Attributes:
        prefix: How the names of the cases' folders begin, in any case.
        modalities: The modalities in the order of nnU-Net's channels.
        separator: The character before the modality in a file's name.
        label_values: Published value -> ours.
        regions: Whether labels are the challenge's overlapping regions, for nnU-Net's region-based training.
    """

    prefix: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]]
    separator: ClassVar[str]
    label_values: ClassVar[Mapping[int, int]]

    regions: bool = option(False, "regions WT, TC, ET (RC) instead of classes")

    def patient(self, name: str) -> str | None:
        """Return the patient of a case by its name; ``None`` if every case is another patient's."""
        return None

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find folders at any depth; a remark counts those without a label, which are left out."""
        cases, unlabelled = [], []
        for folder in sorted(folders_below(source)):
            if not folder.name.lower().startswith(self.prefix.lower()):
                continue
            images = {name: _volume(folder, self.separator + name) for name in self.modalities}
            label = _volume(folder, self.separator + "seg")
            if not any(images.values()):
                continue  # a folder of folders
            if label is None and all(images.values()):
                unlabelled.append(folder.name)
                continue
            problem = missing({**images, "seg": label}, folder)
            files = {"images": tuple(images.values()), "label": label}
            cases.append(Case(folder.name, files, group=self.patient(folder.name), problem=problem))
        notes = [f"{len(unlabelled)} cases without labels were left out: {unlabelled[0]}, ..."] if unlabelled else []
        return cases, notes

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Keep the images as they are, and write the label with our values."""
        images = case.files["images"]
        paths = [raw.image(case, channel) for channel in range(len(images))]
        write_case(images, case.files["label"], self.label_values, paths, raw.label(case))


def _volume(folder: Path, ending: str) -> Path | None:
    return find_file(folder, f"{ending}.nii.gz", f"{ending}.nii")
