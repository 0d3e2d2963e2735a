"""Focal cortical dysplasia, OpenNeuro ds004199; the data of BrainSegDMIF."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.source_files import find_file, missing
from nnunet_kd.datasets.volumes import label_array, read_volume, resampled, write_image, write_volume


@dataclass(frozen=True)
class FCD2023(Dataset):
    """BIDS subjects with focal cortical dysplasia, and controls.

    Attributes:
        t2: Whether T2w is a third channel, of zeros where a case has none. BrainSegDMIF uses T1, T2 and FLAIR.
    """

    id = 505
    name = "FCD2023"
    modality = "MRI: T1w, FLAIR (T2w)"
    size = "85 patients with a lesion, 85 controls"
    licence = "CC0"
    where = "https://openneuro.org/datasets/ds004199"
    layout = "sub-NNNNN/anat/*_{T1w,FLAIR,T2w}.nii.gz, *_roi.nii.gz; participants.tsv"

    t2: bool = option(False, "T2w as a third channel, as BrainSegDMIF uses it, zeros where there is none")

    @property
    def channels(self) -> tuple[str, ...]:
        """The images that become channels, named as their files are."""
        return ("T1w", "FLAIR", "T2w") if self.t2 else ("T1w", "FLAIR")

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find the subjects with a region of interest; those without one are the controls, which are left out.

        ``participants.tsv`` says who is in the test set, if it is there.
        """
        cases, controls = [], 0
        held_out = _test_set(source / "participants.tsv")
        for subject in sorted(source.glob("sub-*")):
            folder = subject / "anat"
            roi = find_file(folder, "_roi.nii.gz")
            if not folder.is_dir() or roi is None:
                controls += subject.is_dir()
                continue
            wanted = {"T1w": find_file(folder, "_T1w.nii.gz"), "FLAIR": find_file(folder, "_FLAIR.nii.gz")}
            files = {**wanted, "T2w": find_file(folder, "_T2w.nii.gz"), "roi": roi}
            test = subject.name in held_out
            cases.append(Case(subject.name, files, test=test, problem=missing(wanted, subject)))
        lost = sum(case.files["T2w"] is None for case in cases)
        notes = [f"{controls} subjects without a region of interest (controls) were left out"] if controls else []
        if self.t2 and lost:
            notes.append(f"{lost} of {len(cases)} subjects have no T2w: their third channel is 0 everywhere")
        if not any(case.test for case in cases):
            notes.append("participants.tsv names no test set: all cases are for training")
        return cases, notes

    def describe(self) -> Description:
        """Describe two channels or three, with one class."""
        return Description(self.channels, {"background": 0, "FCD": 1}, ".nii.gz")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Resample everything to the grid of the FLAIR, on which the lesions were drawn."""
        grid = read_volume(case.files["FLAIR"])
        for channel, role in enumerate(self.channels):
            path = case.files[role]
            if path is None:
                write_volume(np.zeros(grid.GetSize()[::-1], np.float32), grid, raw.image(case, channel))
                continue
            image = resampled(sitk.Cast(read_volume(path), sitk.sitkFloat32), grid)
            write_image(image, raw.image(case, channel))
        roi = resampled(read_volume(case.files["roi"]), grid, nearest=True)
        write_volume(label_array(roi, case.files["roi"], {0: 0, 1: 1}), grid, raw.label(case))


def _test_set(table: Path) -> set[str]:
    """Return the subjects whose ``split`` is ``test``."""
    if not table.is_file():
        return set()
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {str(row.get("participant_id")).strip() for row in rows if str(row.get("split")).strip().lower() == "test"}
