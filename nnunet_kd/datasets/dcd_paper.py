"""The split of the DCD paper, which its two data sets can have instead of ours."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_kd.datasets.base import Dataset
from nnunet_kd.datasets.options import option


@dataclass(frozen=True)
class DCDPaper(Dataset):
    """A data set whose cases the paper validates on in a fold that nnU-Net draws, without a test set.

    Attributes:
        paper_split: Whether all cases are for training and nnU-Net draws the folds, case by case.
    """

    paper_split: bool = option(
        False,
        "the split of the DCD paper: no test set, and the five folds that nnU-Net draws case by case, of which its "
        "authors use fold 3 of BraTS and fold 0 of ISLES; visits of one patient may then lie on both sides",
    )

    @property
    def stock_split(self) -> bool:
        """Whether nnU-Net draws the folds of all cases."""
        return self.paper_split
