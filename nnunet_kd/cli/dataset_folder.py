"""From what a person gives as a data set to its preprocessed folder."""

from __future__ import annotations

from pathlib import Path


def dataset_name(dataset: str) -> str:
    """``DatasetXXX_Name`` of a data set that is given so or as a number.

    Raises:
        ValueError: If it is neither, or nnU-Net knows no such data set, or several.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    if dataset.startswith("Dataset") and dataset[7:10].isdecimal():
        return dataset
    if not dataset.isdecimal():
        raise ValueError(f"a data set is a number or DatasetXXX_Name, got {dataset!r}")
    names = [str(name) for name in find_candidate_datasets(int(dataset))]
    if not names:
        raise ValueError(f"nnU-Net knows no data set {dataset} in its three folders")
    if len(names) > 1:
        raise ValueError(f"nnU-Net has several data sets {dataset} in its three folders: {', '.join(names)}")
    return names[0]


def preprocessed_folder(dataset: str) -> Path:
    """The folder of a data set, given as a number or as ``DatasetXXX_Name``, in ``nnUNet_preprocessed``.

    Raises:
        ValueError: As :func:`dataset_name`.
    """
    from nnunetv2.paths import nnUNet_preprocessed

    return Path(nnUNet_preprocessed.require()) / dataset_name(dataset)


def dataset_number(folder: Path) -> int:
    """Number of a data set by its folder: nnU-Net's planning and preprocessing take no name."""
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

    return int(convert_dataset_name_to_id(folder.name))
