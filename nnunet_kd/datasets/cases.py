"""A case in its published source, and its files in nnU-Net's raw format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One case, as it was found in the source.

    Attributes:
        identifier: The name of the case in nnU-Net.
        files: Role -> file or files. The data set's own ``find`` fills it, and its ``convert`` reads it.
        test: Whether the case belongs to ``imagesTs``.
        validation: Whether it belongs to the official validation set.
        group: Cases of one group, such as the visits of one patient, always lie on the same side of a split. A case
            whose group is ``None`` is a group of its own.
        problem: One sentence that says why the case cannot be converted, if it cannot.
    """

    identifier: str
    files: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False
    validation: bool = False
    group: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class RawFolder:
    """The folder of a data set in nnU-Net's raw format, which names the files of its cases.

    Attributes:
        path: The folder.
        file_ending: The ending of all images and labels, such as ``.nii.gz``.
    """

    path: Path
    file_ending: str

    def image(self, case: Case, channel: int = 0) -> Path:
        """Return the path of one channel of a case."""
        folder = "imagesTs" if case.test else "imagesTr"
        return self.path / folder / f"{case.identifier}_{channel:04d}{self.file_ending}"

    def label(self, case: Case) -> Path:
        """Return the path of a case's label."""
        return self.path / ("labelsTs" if case.test else "labelsTr") / f"{case.identifier}{self.file_ending}"
