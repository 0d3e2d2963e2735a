"""nnU-Net's folds of a data set, written whole before the first training, and their validation cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.storage.writing import write_whole


class Folds:
    """The file in which nnU-Net keeps the folds of a data set.

    Args:
        preprocessed: The data set's folder in ``nnUNet_preprocessed``.
        plans: Plans whose cases are split where there is no file yet.
        configuration: One of theirs.
    """

    def __init__(self, preprocessed: Path, plans: dict[str, Any], configuration: str) -> None:
        self.preprocessed, self.plans, self.configuration = preprocessed, plans, configuration

    @property
    def path(self) -> Path:
        """The file."""
        return self.preprocessed / "splits_final.json"

    def write(self) -> None:
        """nnU-Net's folds, where there are none yet; whole or absent, unlike the file nnU-Net would write.

        Raises:
            ValueError: Where the file that is there cannot be read, or there are no cases to split.
        """
        from nnunetv2.utilities.crossval_split import generate_crossval_split
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_kd.nnunet.cases import dataset_class

        if self.path.is_file():
            self.read()
            return
        identifier = PlansManager(self.plans).get_configuration(self.configuration).data_identifier
        folder = self.preprocessed / identifier
        if not folder.is_dir():
            return  # nnU-Net says that nothing is preprocessed
        cases = dataset_class(folder).get_identifiers(str(folder))
        splits = generate_crossval_split(sorted(cases), seed=12345, n_splits=5)
        write_whole(self.path, json.dumps(_plain(splits), indent=4))

    def read(self) -> Any:
        """The folds.

        Raises:
            ValueError: Where the file cannot be read.
        """
        try:
            return read_splits(self.path)
        except ValueError as error:
            raise ValueError(
                f"cannot read {self.path}, which a killed training has left perhaps: remove it, and nnU-Net's folds "
                "are made again; restore it, if the folds were others"
            ) from error

    def cases_of(self, fold: int) -> list[str]:
        """The fold's validation cases: no student of that fold has seen them.

        Raises:
            ValueError: Where nnU-Net has not split the data set yet, or has no such fold.
        """
        if not self.path.is_file():
            raise ValueError(
                f"there is no {self.path}: nnU-Net makes it when the first training of the data set begins"
            )
        splits = self.read()
        if not 0 <= fold < len(splits):
            raise ValueError(f"{self.path} has {len(splits)} folds, there is no fold {fold}")
        return sorted(splits[fold]["val"])


def _plain(splits: Any) -> Any:
    """Without NumPy's strings and arrays."""
    return [{part: [str(case) for case in cases] for part, cases in split.items()} for split in splits]
