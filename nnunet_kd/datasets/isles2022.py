"""ISLES 2022, ischaemic stroke; the data of DCD's Table 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_kd.datasets.base import Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.dcd_paper import DCDPaper
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.source_files import find_file, missing
from nnunet_kd.datasets.volumes import label_array, read_volume, resampled, write_image, write_volume

ROLES = ("adc", "dwi", "flair")


@dataclass(frozen=True)
class ISLES2022(DCDPaper):
    """BIDS subjects, in the layout of any release.

    Attributes:
        grid: The image whose grid all images and the label are on.
    """

    id = 502
    name = "ISLES2022"
    modality = "MRI: ADC, DWI, FLAIR"
    size = "250 (200 for training in the DCD paper, 50 held out)"
    licence = "CC BY-SA 4.0"
    where = "https://zenodo.org/records/7960856, or the older 7153326"
    layout = (
        "[rawdata/]sub-strokecaseNNNN/ses-0001/[{dwi,anat}/]*_{adc,dwi,flair}.nii.gz, "
        "derivatives/sub-strokecaseNNNN/ses-0001/*_msk.nii.gz"
    )
    test_share = 0.2

    grid: Literal["flair", "dwi"] = option(
        "flair",
        "grid of all images: flair (default), where small lesions may lie between thick slices and be lost, which is "
        "said, or dwi, on which they were drawn",
    )

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find subjects with their three images, and the mask among the derivatives.

        The subjects lie in ``rawdata`` or beside ``derivatives``, their images in ``dwi`` and ``anat`` or in the
        session's folder.
        """
        cases = []
        for subject in sorted([*source.glob("rawdata/sub-*"), *source.glob("sub-*")]):
            if not subject.is_dir():
                continue
            files: dict[str, Path | None] = {}
            for role in ROLES:
                folder = "anat" if role == "flair" else "dwi"
                sessions = [*sorted(subject.glob(f"ses-*/{folder}")), *sorted(subject.glob("ses-*"))]
                files[role] = _first(sessions, f"_{role}.nii.gz")
            files["msk"] = _first(sorted(source.glob(f"derivatives/{subject.name}/ses-*")), "_msk.nii.gz")
            cases.append(Case(subject.name.removeprefix("sub-"), files, problem=missing(files, subject)))
        return cases, []

    def describe(self) -> Description:
        """Describe ADC, DWI and FLAIR, with one class."""
        return Description(("ADC", "DWI", "FLAIR"), {"background": 0, "lesion": 1}, ".nii.gz")

    def convert(self, case: Case, raw: RawFolder) -> str | None:
        """Resample everything to one grid: images linearly, the mask by nearest neighbour.

        Lesions were drawn on the DWI; small ones may lie between the centres of the FLAIR's thicker slices.

        Returns:
            How many of the connected lesions have no voxel left, if any.

        Raises:
            ValueError: If nothing is left of a mask that is not empty.
        """
        volumes = {role: read_volume(path) for role, path in case.files.items()}
        grid = volumes[self.grid]
        for channel, role in enumerate(ROLES):
            image = sitk.Cast(volumes[role], sitk.sitkFloat32)
            write_image(resampled(image, grid), raw.image(case, channel))
        drawn = label_array(volumes["msk"], case.files["msk"], {0: 0, 1: 1})
        lesions, count = ndimage.label(drawn, np.ones((3, 3, 3)))
        numbered = sitk.GetImageFromArray(lesions)
        numbered.CopyInformation(volumes["msk"])
        kept = sitk.GetArrayFromImage(resampled(numbered, grid, nearest=True))
        write_volume((kept > 0).astype(np.uint8), grid, raw.label(case))
        left = np.unique(kept[kept > 0]).size
        if count and not left:
            raise ValueError(f"no voxel of {case.files['msk']} lies on the grid of the {self.grid.upper()}")
        if left == count:
            return None
        return f"{count - left} of {count} lesions have no voxel on the {self.grid.upper()}'s grid"


def _first(folders: list[Path], ending: str) -> Path | None:
    return next((path for path in (find_file(folder, ending) for folder in folders) if path is not None), None)
