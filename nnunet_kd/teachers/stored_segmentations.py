"""The segmentations that stored soft labels imply, in place of references that do not exist.

Where each class lies is found once per case and kept beside its soft labels as ``CASE.npz``, for the oversampling of
foreground. The file names the digest of the soft labels it was found in and is made again if they have changed.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_kd.storage.writing import UnwritableError, replacing
from nnunet_kd.teachers.soft_labels import SoftLabelStore

Locations = dict[int | tuple[int, ...], np.ndarray]


class StoredSegmentation:
    """The segmentation of soft labels, computed only where it is indexed.

    Classes are the largest logit, regions are logits above 0 in nnU-Net's ``regions_class_order``.

    Args:
        logits: The soft labels ``(heads, z, y, x)``, memory mapped.
        labels: nnU-Net's label manager.

    Attributes:
        shape: ``(1, z, y, x)``, as of nnU-Net's segmentations.
    """

    def __init__(self, logits: Any, labels: Any) -> None:
        self._logits = logits
        self._labels = labels
        self.shape = (1, *logits.shape[1:])
        self.dtype = np.dtype(np.int16)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        """Return the labels of a crop ``(1, z, y, x)``."""
        assert where[0] == slice(None), "a segmentation has one channel"
        logits = np.asarray(self._logits[where])
        scores = (logits > 0).astype(np.float32) if self._labels.has_regions else logits
        made = self._labels.convert_probabilities_to_segmentation(scores)
        return np.asarray(made, dtype=self.dtype)[None]

    def whole(self) -> np.ndarray:
        """Return all labels, computed in slabs as high as the chunks of the file."""
        made = np.empty(self.shape, self.dtype)
        height = max(int(getattr(self._logits, "chunks", self._logits.shape)[1]), 1)
        for begin in range(0, self.shape[1], height):
            slab = (slice(None), slice(begin, begin + height))
            made[slab] = self[slab]
        return made


class TeacherLocations:
    """Voxels of every class in stored segmentations, sampled as nnU-Net samples those of references.

    Args:
        store: The soft labels.
        labels: nnU-Net's label manager.
    """

    def __init__(self, store: SoftLabelStore, labels: Any) -> None:
        self._store = store
        self._labels = labels
        classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        self._classes = [tuple(one) if isinstance(one, (tuple, list)) else int(one) for one in classes]
        self._held: dict[str, Locations] = {}

    def make(self, case: str) -> bool:
        """Find the voxels of a case unless they are known, and return whether they had to be found.

        They are held in memory if the folder of the soft labels cannot be written to.
        """
        digest = self._store.digest(case)
        try:
            with np.load(self._store.locations(case)) as stored:
                if str(stored["sha256"]) == digest and all(_name(i) in stored for i in range(len(self._classes))):
                    return False
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or damaged
            pass
        whole = StoredSegmentation(self._store.open(case), self._labels).whole()
        found = DefaultPreprocessor._sample_foreground_locations(whole, self._classes)
        made = [np.asarray(found[one], np.int32).reshape(-1, 4) for one in self._classes]
        try:
            with replacing(self._store.locations(case)) as unfinished, unfinished.open("wb") as file:
                np.savez_compressed(file, sha256=digest, **{_name(i): one for i, one in enumerate(made)})  # type: ignore[arg-type]
        except UnwritableError:
            self._held[case] = self._by_class(made)
        return True

    def read(self, case: str) -> Locations:
        """Return the voxels ``(N, 4)`` of each foreground class or region as nnU-Net's ``class_locations``.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        if case in self._held:
            return self._held[case]
        path = self._store.locations(case)
        try:
            with np.load(path) as stored:
                return self._by_class([stored[_name(i)] for i in range(len(self._classes))])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {path}: remove it, and the next training makes it again") from error

    def _by_class(self, found: list[np.ndarray]) -> Locations:
        # nnU-Net subtracts half a patch from the coordinates, which must not be unsigned.
        return {one: voxels.astype(np.int64) for one, voxels in zip(self._classes, found, strict=True)}


def _name(number: int) -> str:
    return f"class_{number}"
