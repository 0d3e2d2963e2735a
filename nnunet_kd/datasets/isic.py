"""The layout the ISIC challenges share: a folder of pictures and one of masks for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from nnunet_kd.datasets.base import Dataset, Description
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.pictures import write_colour_case
from nnunet_kd.datasets.source_files import entries
from nnunet_kd.datasets.splits import with_test_set

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class ISIC(Dataset):
    """A challenge with official parts.

    Attributes:
        prefix: How the names of the challenge's folders begin, in any case.
        test_of_vm_unet: How many of the training and validation pictures VM-UNet tests on, and how many there are.
        vm_unet_split: Whether as large a share of them becomes the test set, instead of the official parts.
    """

    prefix: ClassVar[str]
    test_of_vm_unet: ClassVar[tuple[int, int]]

    vm_unet_split: bool = option(
        False,
        "VM-UNet's 7:3: of the official training and validation pictures, as many as it tests on become the test set "
        "(650 of 2150, or 808 of 2694), drawn by name because its list is not in its repository; the official test set "
        "is left out",
    )

    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find the official parts; a remark names a part without masks, which is left out."""
        cases, notes = [], []
        begins = self.prefix.lower()
        of_challenge = [path for path in entries(source) if path.is_dir() and path.name.lower().startswith(begins)]
        for part in PARTS:
            folders = [path for path in of_challenge if part in path.name.lower()]
            pictures = [path for path in folders if path.name.lower().endswith(("_data", "_input"))]
            truths = [path for path in folders if path.name.lower().endswith("_groundtruth")]
            if not pictures:
                continue
            if not truths:
                notes.append(f"{pictures[0].name} has no masks beside it and was left out")
                continue
            for image in entries(pictures[0]):
                if image.suffix.lower() not in (".jpg", ".jpeg"):  # superpixels and lists lie beside them
                    continue
                mask = truths[0] / f"{image.stem}_segmentation.png"
                cases.append(
                    Case(
                        image.stem,
                        {"image": image, "mask": mask},
                        test=part == "test",
                        validation=part == "validation",
                        problem=None if mask.is_file() else f"there is no mask {mask}",
                    )
                )
        if self.vm_unet_split:
            test, everyone = self.test_of_vm_unet
            kept = [replace(case, validation=False) for case in cases if not case.test]
            if len(kept) < len(cases):
                notes.append(f"the official test set of {len(cases) - len(kept)} pictures was left out")
            cases = with_test_set(kept, test / everyone)
        return cases, notes

    def describe(self) -> Description:
        """Describe red, green and blue in one file, with one class."""
        return Description(("R", "G", "B"), {"background": 0, "lesion": 1}, ".png")

    def convert(self, case: Case, raw: RawFolder) -> None:
        """Write both as PNG."""
        write_colour_case(case.files["image"], case.files["mask"], raw.image(case), raw.label(case))
