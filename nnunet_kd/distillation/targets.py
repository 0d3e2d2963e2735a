"""Reading nnU-Net's training targets, whether they hold labels or regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LabelCodes:
    """Read from nnU-Net's targets which voxels are not ignored and which class each voxel has.

    A target of labels is ``(B, 1, *spatial)``. A target of regions has one channel per region and, if the data set has
    an ignore label, a last one that marks ignored voxels. Regions can overlap: voxels belong to the same class if they
    are in the same regions.

    Args:
        label_manager: nnU-Net's label manager.
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
        """Check that :meth:`classes` can tell the regions apart.

        Raises:
            NotImplementedError: If there are more regions than a 64-bit integer can encode.
        """
        if self._num_regions > 62:
            raise NotImplementedError(
                f"the data set has {self._num_regions} regions, but the term's loss can tell only 62 apart"
            )

    def valid(self, target: Tensor) -> Tensor | None:
        """Return the mask of voxels that are not ignored, boolean ``(B, 1, *spatial)``; ``None`` if all are valid."""
        if self.ignore_label is None:
            return None
        return ~target[:, -1:].bool() if self.regions else target != self.ignore_label

    def structures(self, target: Tensor) -> Tensor:
        """Return the target without what marks ignored voxels: labels ``(B, 1, *spatial)``, or all regions."""
        return target[:, :-1] if self.regions and self.ignore_label is not None else target

    def foreground(self, target: Tensor) -> Tensor:
        """Return the mask of voxels in any structure, boolean ``(B, 1, *spatial)``; ignored voxels are in none."""
        inside = (self.structures(target) > 0).any(1, keepdim=True)
        valid = self.valid(target)
        return inside if valid is None else inside & valid

    def ignored(self, target: Tensor, cases: Tensor) -> Tensor:
        """Return a copy of a target in which some cases of the batch are ignored in every voxel.

        Voxels that a crop or an augmentation takes from outside an image are background for nnU-Net, which is known
        of labelled cases only.

        Args:
            target: nnU-Net's target of one scale.
            cases: Which cases to ignore, boolean ``(B,)``.
        """
        assert self.ignore_label is not None, "without an ignore label every case has a reference"
        changed = target.clone()
        changed[cases] = 0 if self.regions else self.ignore_label
        if self.regions:
            changed[cases, -1:] = 1
        return changed

    def taught(self, target: Tensor, cases: Tensor, logits: Tensor) -> Tensor:
        """Return a copy of a target in which some cases of the batch have the teacher's labels.

        Args:
            target: nnU-Net's target of one scale.
            cases: Which cases to replace, boolean ``(B,)``.
            logits: The teacher's logits on the target's grid, ``(B, heads, *spatial)``.
        """
        changed = self.ignored(target, cases)
        if self.regions:
            changed[cases, :-1] = (logits[cases] > 0).to(target.dtype)
            changed[cases, -1:] = 0
        else:
            changed[cases] = logits[cases].argmax(1, keepdim=True).to(target.dtype)
        return changed

    def classes(self, target: Tensor) -> Tensor:
        """Return the class of every voxel, ``(B, *spatial)``, counted from 0; -1 for ignored voxels."""
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
