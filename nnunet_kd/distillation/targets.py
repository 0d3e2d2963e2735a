"""nnU-Net's training targets: which voxels count, and which class each of them has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LabelCodes:
    """Reads nnU-Net's training targets: which voxels count, and which class each of them has.

    A target is ``(B, 1, *spatial)`` with the label, or one channel a region, and one more that marks ignored voxels
    where there are any. Regions may overlap: voxels have the same class where they are in the same regions.

    Args:
        label_manager: nnU-Net's.
    """

    def __init__(self, label_manager: Any) -> None:
        self.regions: bool = label_manager.has_regions
        self._num_regions = 0
        self._sorted: Tensor | None = None
        self.ignore_label: int | None = label_manager.ignore_label
        if self.regions:
            labels = [label for label in label_manager.all_labels if label != self.ignore_label]
            regions = [
                region if isinstance(region, tuple) else (region,) for region in label_manager.foreground_regions
            ]
            codes = sorted({sum(1 << i for i, region in enumerate(regions) if label in region) for label in labels})
            self.num_classes = len(codes)
            self._num_regions = len(regions)
            self._codes = codes
        else:
            self.num_classes = label_manager.num_segmentation_heads

    def check_classes(self) -> None:
        """Whether :meth:`classes` can tell the regions apart.

        Raises:
            NotImplementedError: For more regions than a whole number has bits.
        """
        if self._num_regions > 62:
            raise NotImplementedError(f"classes of {self._num_regions} regions: at most 62 can be told apart")

    def valid(self, target: Tensor) -> Tensor | None:
        """Voxels that count, boolean ``(B, 1, *spatial)``; ``None`` where all do."""
        if self.ignore_label is None:
            return None
        return ~target[:, -1:].bool() if self.regions else target != self.ignore_label

    def classes(self, target: Tensor) -> Tensor:
        """Class of every voxel, ``(B, *spatial)``, whole numbers from 0; -1 where it is ignored."""
        if self.regions:
            regions = target if self.ignore_label is None else target[:, :-1]
            bits = 1 << torch.arange(regions.shape[1], device=target.device)
            codes = (regions.long() * bits.view(-1, *[1] * (target.ndim - 2))).sum(1)
            if self._sorted is None or self._sorted.device != target.device:
                self._sorted = torch.tensor(self._codes, device=target.device)
            classes = torch.searchsorted(self._sorted, codes)
        else:
            classes = target[:, 0].long()
        valid = self.valid(target)
        return classes if valid is None else classes.masked_fill(~valid[:, 0], -1)
