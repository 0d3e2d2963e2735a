"""From what a person gives as a data set to its preprocessed folder."""

from __future__ import annotations

from pathlib import Path


def preprocessed_folder(dataset: str) -> Path:
    """The folder of a data set, given as a number or as ``DatasetXXX_Name``, in ``nnUNet_preprocessed``.

    Raises:
        ValueError: If it is neither, or nnU-Net knows no such data set.
    """
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    base = Path(nnUNet_preprocessed.require())
    if not dataset.startswith("Dataset"):
        if not dataset.isdecimal():
            raise ValueError(f"a data set is a number or DatasetXXX_Name, got {dataset!r}")
        try:
            dataset = maybe_convert_to_dataset_name(int(dataset))
        except RuntimeError:
            raise ValueError(f"nnU-Net knows no data set {dataset} in nnUNet_raw or {base}") from None
    return base / dataset
