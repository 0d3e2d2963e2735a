"""Guards against broken data and diverged losses: neither may reach the student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SKIPPED = "skipped_steps"
PATIENCE = 50  # skipped steps in a row before the training stops


class BatchCheck:
    """Check every batch in the process that loads it, so that the training step does not wait for the check.

    Args:
        image_channels: The number of image channels of ``data``; channels after them hold soft labels.
        label_manager: nnU-Net's label manager.
        raw: Whether targets are labels even if the training learns regions. If not, targets of regions are not checked.
    """

    def __init__(self, image_channels: int, label_manager: Any, raw: bool = False) -> None:
        self._image_channels = image_channels
        known = {*map(int, label_manager.all_labels)}
        if label_manager.ignore_label is not None:
            known.add(int(label_manager.ignore_label))
        self._consecutive = known == set(range(len(known)))
        self._words = f"0 to {max(known)}" if self._consecutive else ", ".join(map(str, sorted(known)))
        self._known = known if raw or not label_manager.has_regions else None

    def __call__(self, batch: Mapping[str, Any]) -> str | None:
        """Return a message that names the first faulty case, or ``None`` if all are sound."""
        data, target = batch["data"], batch["target"]
        target = target[0] if isinstance(target, list) else target
        for number, case in enumerate(batch["keys"]):
            finite = torch.isfinite(data[number]).flatten(1).all(1)
            if not finite[: self._image_channels].all():
                channel = int((~finite).nonzero()[0])
                return (
                    f"case {case}: channel {channel} of its preprocessed image has values that are not finite. "
                    "Correct the raw image and preprocess it again, or remove the case from splits_final.json"
                )
            if not finite.all():
                return (
                    f"case {case}: its soft labels are not finite. Remove their file and make it again with "
                    "nnunet_kd soft-labels ... --continue"
                )
            if "embedding" in batch and not torch.isfinite(batch["embedding"][number]).all():
                return (
                    f"case {case}: its stored embeddings are not finite. Remove their file and make it again with "
                    "nnunet_kd soft-labels --embeddings ... --continue"
                )
            unknown = self._unknown(target[number])
            if unknown:
                return (
                    f"case {case}: its segmentation has the label {unknown[0]}, but dataset.json declares "
                    f"{self._words}. nnUNetv2_plan_and_preprocess --verify_dataset_integrity finds every case like this"
                )
        return None

    def _unknown(self, labels: torch.Tensor) -> list[int]:
        if self._known is None:
            return []
        if self._consecutive and 0 <= labels.min() <= labels.max() < len(self._known):  # faster than np.unique
            return []
        return sorted({int(label) for label in np.unique(labels)} - self._known)


class SkippedSteps:
    """Count steps skipped for gradients that are not finite, and stop the training after too many in a row.

    Under AMP nnU-Net's gradient scaler skips them and lowers its scale; otherwise the trainer skips them.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def watch(self, numbers: Mapping[str, Any]) -> None:
        """Take the numbers of one step into account.

        Args:
            numbers: The values of the step for the log; :data:`SKIPPED` is 1 if it was skipped.

        Raises:
            RuntimeError: After :data:`PATIENCE` skipped steps in a row. Saved checkpoints are not affected.
        """
        self._in_a_row = self._in_a_row + 1 if numbers[SKIPPED] else 0
        if self._in_a_row < PATIENCE:
            return
        losses = {name: value for name, value in numbers.items() if name not in (SKIPPED, "loss")}
        broken = [name for name, value in losses.items() if not np.isfinite(value)]
        cause = f"not finite: {', '.join(broken)}" if broken else "the gradients overflow"
        raise RuntimeError(
            f"the last {PATIENCE} steps were skipped because their gradients were not finite ({cause}): the training "
            "has diverged or its data are broken. The last checkpoint is intact; try a smaller initial_lr or weight"
        )
