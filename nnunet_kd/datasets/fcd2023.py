"""Focal cortical dysplasia, OpenNeuro ds004199; data of BrainSegDMIF."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_kd.datasets.conversion import Case, Description, Format, Options, Target, find_file, missing
from nnunet_kd.datasets.volumes import label_array, read_volume, resampled, write_image, write_volume


def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
    """Subjects with a region of interest; those without are the controls and are left out.

    Who is in the test set is what ``participants.tsv`` says, where it is there.
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
    notes = [f"{controls} subjects without a region of interest (controls) were left out"] if controls else []
    if not any(case.test for case in cases):
        notes.append("participants.tsv names no test set: all cases are for training")
    return cases, notes


def _test_set(table: Path) -> set[str]:
    """Subjects whose ``split`` is ``test``."""
    if not table.is_file():
        return set()
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {str(row.get("participant_id")).strip() for row in rows if str(row.get("split")).strip().lower() == "test"}


def describe(options: Options) -> Description:
    """T1w and FLAIR, with ``t2`` T2w too."""
    channels = ("T1w", "FLAIR", "T2w") if options.t2 else ("T1w", "FLAIR")
    return Description(channels, {"background": 0, "FCD": 1}, ".nii.gz")


def convert(case: Case, target: Target, options: Options) -> None:
    """All on the FLAIR's grid, on which lesions were drawn; a T2w that is not there is a channel of zeros."""
    grid = read_volume(case.files["FLAIR"])
    roles = ("T1w", "FLAIR", "T2w") if options.t2 else ("T1w", "FLAIR")
    for channel, role in enumerate(roles):
        path = case.files[role]
        if path is None:
            write_volume(np.zeros(grid.GetSize()[::-1], np.float32), grid, target.image(case, channel))
            continue
        image = resampled(sitk.Cast(read_volume(path), sitk.sitkFloat32), grid)
        write_image(image, target.image(case, channel))
    roi = resampled(read_volume(case.files["roi"]), grid, nearest=True)
    write_volume(label_array(roi, case.files["roi"], {0: 0, 1: 1}), grid, target.label(case))


FORMAT = Format(
    id=505,
    name="FCD2023",
    modality="MRI: T1w, FLAIR (T2w)",
    size="85 patients with a lesion, 85 controls",
    licence="CC0",
    where="https://openneuro.org/datasets/ds004199",
    layout="sub-NNNNN/anat/*_{T1w,FLAIR,T2w}.nii.gz, *_roi.nii.gz; participants.tsv",
    find=find,
    describe=describe,
    convert=convert,
    options=("t2",),
)
