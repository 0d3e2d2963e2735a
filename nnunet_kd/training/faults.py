"""What must not reach the student's weights: images, labels and losses that are not numbers or not of the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SKIPPED = "skipped_steps"
PATIENCE = 50  # steps


class BatchCheck:
    """Looks at every batch where it is loaded, beside the training: there it costs the training nothing.

    Args:
        image_channels: Channels of ``data`` that are images; soft labels follow.
        label_manager: nnU-Net's.
        raw: Targets are labels where the training learns regions too; else those of regions are not looked at.
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
        """A sentence that names the first case with a fault; ``None``: there is none."""
        data, target = batch["data"], batch["target"]
        target = target[0] if isinstance(target, list) else target
        for number, case in enumerate(batch["keys"]):
            finite = torch.isfinite(data[number]).flatten(1).all(1)
            if not finite[: self._image_channels].all():
                channel = int((~finite).nonzero()[0])
                return (
                    f"case {case}: its preprocessed image has values that are not finite numbers in channel {channel}. "
                    "Correct the raw image and preprocess again, or leave the case out of splits_final.json"
                )
            if not finite.all():
                return (
                    f"case {case}: its soft labels are not finite numbers. Remove its file and make it again, "
                    "nnunet_kd soft-labels ... --continue"
                )
            if "embedding" in batch and not torch.isfinite(batch["embedding"][number]).all():
                return (
                    f"case {case}: its stored embeddings are not finite numbers. Remove its file and make it again, "
                    "nnunet_kd soft-labels --embeddings ... --continue"
                )
            unknown = self._unknown(target[number])
            if unknown:
                return (
                    f"case {case}: its labels have the class {unknown[0]}, dataset.json knows {self._words}. "
                    "nnUNetv2_plan_and_preprocess --verify_dataset_integrity finds all such cases"
                )
        return None

    def _unknown(self, labels: torch.Tensor) -> list[int]:
        if self._known is None:
            return []
        if self._consecutive and 0 <= labels.min() <= labels.max() < len(self._known):  # faster than to list them
            return []
        return sorted({int(label) for label in np.unique(labels)} - self._known)


class SkippedSteps:
    """Counts steps whose gradients were not finite, and gives up when none of many can be taken.

    Such a step is skipped: under AMP by nnU-Net's gradient scaler, which then tries smaller numbers, elsewhere by us.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def watch(self, numbers: Mapping[str, Any]) -> None:
        """After each step.

        Args:
            numbers: What the step leaves for the log; :data:`SKIPPED` is 1 where it was skipped.

        Raises:
            RuntimeError: After :data:`PATIENCE` such steps in a row; nothing saved has been touched.
        """
        self._in_a_row = self._in_a_row + 1 if numbers[SKIPPED] else 0
        if self._in_a_row < PATIENCE:
            return
        guilty = [name for name, value in numbers.items() if name not in (SKIPPED, "loss") and not np.isfinite(value)]
        cause = f"not finite: {', '.join(guilty)}" if guilty else "they overflow"
        raise RuntimeError(
            f"the last {PATIENCE} steps were skipped because their gradients were not finite ({cause}): the training "
            "has diverged, or its data are broken. The last checkpoint is complete; try a smaller initial_lr or weight"
        )
