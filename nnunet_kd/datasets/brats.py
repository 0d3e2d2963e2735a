"""The layout the BraTS data sets share: a folder a case, a NIfTI file a modality, one of labels, one grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_kd.datasets.conversion import Case, Options, Target, find_file, folders_below, missing
from nnunet_kd.datasets.volumes import write_case


def finder(
    prefix: str, modalities: Sequence[str], separator: str, group: Callable[[str], str | None]
) -> Callable[[Path, Options], tuple[list[Case], list[str]]]:
    """Finds folders ``PREFIX*`` with ``*SEPARATORMODALITY.nii.gz``; folders without a label are noted and left out.

    Args:
        prefix: Of the cases' folders, in capitals or not.
        modalities: In the order of nnU-Net's channels.
        separator: Before the modality in a file's name.
        group: Name of a case -> its patient.
    """

    def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
        cases, unlabelled = [], []
        for folder in sorted(folders_below(source)):
            if not folder.name.lower().startswith(prefix.lower()):
                continue
            images = {name: _volume(folder, separator + name) for name in modalities}
            label = _volume(folder, separator + "seg")
            if not any(images.values()):
                continue  # a folder of folders
            if label is None and all(images.values()):
                unlabelled.append(folder.name)
                continue
            problem = missing({**images, "seg": label}, folder)
            files = {"images": tuple(images.values()), "label": label}
            cases.append(Case(folder.name, files, group=group(folder.name), problem=problem))
        notes = [f"{len(unlabelled)} cases without labels were left out: {unlabelled[0]}, ..."] if unlabelled else []
        return cases, notes

    return find


def _volume(folder: Path, ending: str) -> Path | None:
    return find_file(folder, f"{ending}.nii.gz", f"{ending}.nii")


def converter(mapping: Mapping[int, int]) -> Callable[[Case, Target, Options], None]:
    """Writes one case; labels after the mapping."""

    def convert(case: Case, target: Target, options: Options) -> None:
        images = case.files["images"]
        paths = [target.image(case, channel) for channel in range(len(images))]
        write_case(images, case.files["label"], mapping, paths, target.label(case))

    return convert
