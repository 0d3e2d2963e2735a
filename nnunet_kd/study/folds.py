"""nnU-Net's folds of a data set, written before the first training, and their validation cases."""

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
        plans: The plans whose cases are split if there is no file yet.
        configuration: A configuration of the plans.
    """

    def __init__(self, preprocessed: Path, plans: dict[str, Any], configuration: str) -> None:
        self.preprocessed, self.plans, self.configuration = preprocessed, plans, configuration

    @property
    def path(self) -> Path:
        """The file that holds the folds."""
        return self.preprocessed / "splits_final.json"

    def write(self) -> None:
        """Write nnU-Net's folds unless they exist; a kill leaves no partial file, unlike in nnU-Net.

        Raises:
            ValueError: If the existing file cannot be read, or there are no cases to split.
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
            return  # nnU-Net will say that nothing is preprocessed
        cases = dataset_class(folder).get_identifiers(str(folder))
        splits = generate_crossval_split(sorted(cases), seed=12345, n_splits=5)
        write_whole(self.path, json.dumps(_plain(splits), indent=4))

    def read(self) -> Any:
        """Read the folds.

        Raises:
            ValueError: If the file cannot be read.
        """
        try:
            return read_splits(self.path)
        except ValueError as error:
            raise ValueError(
                f"cannot read {self.path}, perhaps because a training was killed while writing it: remove the file to "
                "have nnU-Net's default folds written again, or restore it if you had folds of your own"
            ) from error

    def cases_of(self, fold: int) -> list[str]:
        """Return the validation cases of a fold, which no student of that fold has seen.

        Raises:
            ValueError: If nnU-Net has not split the data set yet, or there is no such fold.
        """
        if not self.path.is_file():
            raise ValueError(
                f"there is no {self.path}: nnU-Net writes it when the first training of the data set starts"
            )
        splits = self.read()
        if not 0 <= fold < len(splits):
            raise ValueError(f"{self.path} has {len(splits)} folds, but no fold {fold}")
        return sorted(splits[fold]["val"])


def _plain(splits: Any) -> Any:
    """Return the splits with plain strings and lists instead of those of NumPy."""
    return [{part: [str(case) for case in cases] for part, cases in split.items()} for split in splits]
