"""Batches of unaugmented patches with their stored SAM embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nnunet_kd.teachers.sam_embeddings import EmbeddingStore, SlicePatches


class EmbeddedPatches:
    """An endless data loader with nnU-Net's interface, which draws cases and then their patches uniformly.

    Args:
        dataset: nnU-Net's data set of a 2-D configuration.
        store: The store with the embeddings of all its cases.
        patch_size: The size ``(y, x)`` of a patch in voxels.
        batch_size: The number of patches per batch.
        transforms: nnU-Net's validation transforms, which convert labels to the form that its loss expects.
    """

    def __init__(
        self, dataset: Any, store: EmbeddingStore, patch_size: Sequence[int], batch_size: int, transforms: Any
    ) -> None:
        self._dataset = dataset
        self._store = store
        self._patch_size = list(patch_size)
        self._batch_size = batch_size
        self._transforms = transforms

    def set_thread_id(self, _thread_id: int) -> None:
        """Ignore the worker's number, which this loader does not need."""

    def __next__(self) -> dict[str, Any]:
        """Return ``data`` and ``target`` as nnU-Net's loader does, and ``embedding`` ``(B, channels, h, w)``.

        Raises:
            ValueError: If the number of stored embeddings is not that of the patches of a case.
        """
        keys = [str(key) for key in np.random.choice(self._dataset.identifiers, self._batch_size)]
        patches = [self._patch(key) for key in keys]
        batch: dict[str, Any] = {name: torch.stack([patch[name] for patch in patches]) for name in patches[0]}
        return {**batch, "keys": keys}

    def _patch(self, case: str) -> dict[str, torch.Tensor]:
        image, segmentation, _, _ = self._dataset.load_case(case)
        embeddings = self._store.open(case)
        patches = SlicePatches(image.shape[1:], self._patch_size)
        if len(embeddings) != len(patches):
            raise ValueError(
                f"{self._store.path(case)} has embeddings of {len(embeddings)} patches, but the preprocessed case has "
                f"{len(patches)}: make the embeddings again"
            )
        number = np.random.randint(len(patches))
        cut = {
            "image": torch.from_numpy(patches.cut(image, number).astype(np.float32)),
            "segmentation": torch.from_numpy(patches.cut(segmentation, number, fill=-1).astype(np.int16)),
        }
        transformed = self._transforms(**cut)
        embedding = torch.from_numpy(np.asarray(embeddings[number], dtype=np.float32))
        return {"data": transformed["image"], "target": transformed["segmentation"], "embedding": embedding}
