"""The option of a test set for data sets that were published without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_kd.datasets.base import Dataset
from nnunet_kd.datasets.cases import Case
from nnunet_kd.datasets.options import option
from nnunet_kd.datasets.splits import with_test_set

SHARE = 0.2


@dataclass(frozen=True)
class DrawnTestSet(Dataset):
    """A data set without a published test set, of which KD-SAM's paper reports "a separate test dataset".

    Attributes:
        test_set: Whether a fifth of the cases becomes the test set.
    """

    test_set: bool = option(
        False,
        "draw a fifth of the cases as a test set by name, the same ones every time; pictures of one examination stay "
        "together where names tell (HC18)",
    )

    def with_test_set(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases, of which the chosen share is for testing."""
        return with_test_set(cases, SHARE if self.test_set else 0.0)
