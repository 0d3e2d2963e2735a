"""The base class of all data sets: what one file per data set declares.

To add a data set, write a subclass of :class:`Dataset` in a file of its own and name it in ``table.py``. This is all
there is to it::

    from dataclasses import dataclass

    from nnunet_kd.datasets.base import Dataset, Description
    from nnunet_kd.datasets.cases import Case
    from nnunet_kd.datasets.options import option
    from nnunet_kd.datasets.source_files import entries, find_file
    from nnunet_kd.datasets.volumes import write_case

    @dataclass(frozen=True)
    class Hearts2030(Dataset):
        \"\"\"Hearts 2030, cine MRI of the left ventricle.\"\"\"

        id = 512
        name = "Hearts2030"
        modality = "MRI"
        size = "100"
        licence = "CC BY 4.0"
        where = "https://example.org/hearts2030"
        layout = "images/NAME.nii.gz, masks/NAME.nii.gz"

        wall: bool = option(False, "label the wall of the ventricle too")

        def find(self, source):
            cases = []
            for image in entries(source / "images"):
                mask = find_file(source / "masks", image.name)
                problem = None if mask is not None else f"there is no mask of {image}"
                identifier = image.name.removesuffix(".nii.gz")
                cases.append(Case(identifier, {"image": image, "mask": mask}, problem=problem))
            return cases, []

        def describe(self):
            wall = {"wall": 2} if self.wall else {}
            return Description(("MRI",), {"background": 0, "cavity": 1, **wall}, ".nii.gz")

        def convert(self, case, raw):
            labels = {0: 0, 1: 1, 2: 2 if self.wall else 0}
            write_case([case.files["image"]], case.files["mask"], labels, [raw.image(case)], raw.label(case))

``nnunet_kd dataset Hearts2030 FOLDER --wall`` then converts it, ``--help`` explains ``--wall`` and ``--list`` shows the
rest. Worker processes, skipped cases, test sets, splits and ``dataset.json`` are the work of ``conversion.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nnunet_kd.datasets.cases import Case, RawFolder


@dataclass(frozen=True)
class Description:
    """What ``dataset.json`` says about the images and labels.

    Attributes:
        channel_names: The names of the channels, in nnU-Net's order. nnU-Net chooses the normalisation by them.
        labels: Name -> value, or the values of a region.
        file_ending: The ending of all images and labels.
        regions_class_order: The value that nnU-Net writes for each region; ``None`` without regions.
    """

    channel_names: tuple[str, ...]
    labels: Mapping[str, int | Sequence[int]]
    file_ending: str
    regions_class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Dataset(ABC):
    """One published data set. An instance holds the options that a person chose.

    A subclass with options is a frozen dataclass whose fields are declared with
    :func:`~nnunet_kd.datasets.options.option`; a subclass without any needs no decorator. Instances travel to worker
    processes, so a subclass is defined at the top of a module.

    Attributes:
        id: The number of the data set in nnU-Net, unless a person gives another one.
        name: The name of the data set in nnU-Net and on the command line, without spaces.
        modality: What the images are.
        size: How many cases there are, as published.
        licence: The terms of use.
        where: Where a person gets the data.
        layout: The files that are expected, relative to the folder that a person gives.
        test_share: Which part of the cases becomes the test set where the source has none. Whole groups are drawn.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    modality: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    where: ClassVar[str]
    layout: ClassVar[str]
    test_share: ClassVar[float] = 0.0

    @property
    def stock_split(self) -> bool:
        """Whether nnU-Net draws the folds of all cases: no test set is drawn, and no patients are kept together."""
        return False

    @abstractmethod
    def find(self, source: Path) -> tuple[list[Case], list[str]]:
        """Find all cases in a source, without reading images.

        A case with missing files is returned with its ``problem``, so that the person decides whether to skip it. A
        source with another layout has no cases.

        Args:
            source: The folder that a person gave.

        Returns:
            The cases, and remarks on the source, each one sentence.

        Raises:
            ValueError: If a table of the source cannot be read.
        """

    @abstractmethod
    def describe(self) -> Description:
        """Return what ``dataset.json`` says under the chosen options."""

    @abstractmethod
    def convert(self, case: Case, raw: RawFolder) -> str | None:
        """Write the images and the label of one case.

        ``volumes.py`` and ``pictures.py`` read and write them. The conversion removes what a failed case has written.

        Args:
            case: One of those that :meth:`find` returned, without a problem.
            raw: Names the files to write; their folders exist.

        Returns:
            A remark on the case, or ``None``.

        Raises:
            ValueError: If the case cannot be converted; the message names the file that is wrong.
        """
