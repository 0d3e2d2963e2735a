"""Sources of stored soft labels and embeddings: SAM or an nnU-Net, for each case of a preprocessed data set.

All three serve one command through one protocol, so they share a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.reading import read_splits
from nnunet_kd.nnunet.settings import read_settings
from nnunet_kd.storage.integrity import file_digest
from nnunet_kd.teachers.find import find_teachers
from nnunet_kd.teachers.sam import ABSENT, WINDOW, SamSettings, SamTeacher, load_sam
from nnunet_kd.teachers.sam_embeddings import AT_ONCE, STEP, Colours, SamEmbedder, SlicePatches
from nnunet_kd.teachers.teacher import case_predictor, load_plain


class Source(Protocol):
    """A source makes soft labels, or embeddings, of preprocessed cases."""

    @property
    def description(self) -> dict[str, Any]:
        """Everything that the values depend on, for the manifest."""

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases in the order in which they are made fastest."""

    def values(self, case: str) -> np.ndarray:
        """Compute what is stored of a case: logits ``(heads, z, y, x)``, or embeddings of its patches."""


class SamSource:
    """SAM with prompts from the training labels.

    For labels the logits are [0, s_1 .. s_K] with SAM's mask logit s_k of class k, whose softmax over two classes is
    SAM's sigmoid; for regions [s_1 .. s_K].

    Args:
        cases: The data.
        settings: How SAM is asked.
        checkpoint: Its weights.
        device: Where it runs.

    Raises:
        ValueError: For a channel the images do not have, or weights that cannot be read.
        FileNotFoundError: If there is no checkpoint.
    """

    def __init__(self, cases: PreprocessedCases, settings: SamSettings, checkpoint: Path, device: torch.device) -> None:
        for channel in settings.channels:
            if not 0 <= channel < cases.channels:
                raise ValueError(f"there is no channel {channel}: the images have {cases.channels}")
        self._cases = cases
        self._teacher = SamTeacher(load_sam(settings.model_type, checkpoint), settings, device)
        spacing = list(cases.configuration.spacing)
        self._axis = int(np.argmax(spacing)) if len(spacing) == 3 else 0
        self.description: dict[str, Any] = {
            "kind": "sam",
            "checkpoint_sha256": file_digest(checkpoint),
            **asdict(settings),
            "window": WINDOW,
            "absent": ABSENT,
            "axis": self._axis,
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases as they are: their order does not matter."""
        return cases

    def values(self, case: str) -> np.ndarray:
        """Compute the logits of a case, ``(heads, z, y, x)``."""
        images, segmentation = self._cases.load(case)
        labels = self._cases.labels
        wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        structures = np.stack([np.isin(segmentation, region) for region in wanted])
        logits = self._teacher.logits(images, structures, segmentation >= 0, self._axis)
        return logits if labels.has_regions else np.concatenate([np.zeros_like(logits[:1]), logits])


class NnUNetSource:
    """The nnU-Net teacher the plans name, by its own sliding window.

    Args:
        cases: The data.
        fold: Of the teacher that does all cases, ``"all"`` too; ``None``: each case by the fold that was not trained on
            it.
        mirroring: Average over mirrored copies.
        device: Where it runs.

    Raises:
        FileNotFoundError: If a teacher is missing, with the command that makes it.
        ValueError: If one does not fit or cannot be loaded, or a case is a validation case of no fold.
        NotImplementedError: For several teachers, or a cascade's second stage.
    """

    def __init__(self, cases: PreprocessedCases, fold: int | str | None, mirroring: bool, device: torch.device) -> None:
        settings = read_settings(cases.experiment.plans).teachers
        if len(settings) > 1:
            raise NotImplementedError("the plans name several teachers: soft labels are of one")
        if cases.configuration.previous_stage_name is not None:
            raise NotImplementedError(
                f"{cases.experiment.configuration} sees the segmentation of the stage before: an nnU-Net's soft labels "
                f"of a cascade's second stage cannot be stored{_with_the_same_data(cases)}"
            )
        self._cases = cases
        self._mirroring = mirroring
        self._device = device
        self._fold_of = _folds(cases.folder / "splits_final.json", cases.identifiers, fold)
        folds = sorted(set(self._fold_of.values()), key=_number)
        teacher = replace(settings[0], folds="same")
        self._teachers = {one: find_teachers([teacher], cases.experiment, one)[0] for one in folds}
        for files in self._teachers.values():  # before the store is begun
            load_plain(files)
        self._loaded: dict[int | str, Callable[[np.ndarray], np.ndarray]] = {}
        self.description: dict[str, Any] = {
            "kind": "nnunet",
            "teacher": self._teachers[folds[0]].checkpoint.parents[1].name,
            "folds": folds,
            "out_of_fold": fold is None,
            "mirroring": mirroring,
            "checkpoint_sha256": {str(one): file_digest(files.checkpoint) for one, files in self._teachers.items()},
            "leakage": list(dict.fromkeys(f.leakage for f in self._teachers.values() if f.leakage is not None)),
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Order the cases by fold, so that each teacher is loaded once."""
        return sorted(cases, key=lambda case: (_number(self._fold_of[case]), case))

    def values(self, case: str) -> np.ndarray:
        """Compute the logits of a case, ``(heads, z, y, x)``."""
        fold = self._fold_of[case]
        if fold not in self._loaded:
            self._loaded.clear()
            self._loaded[fold] = case_predictor(self._teachers[fold], self._device, self._mirroring)
        return self._loaded[fold](self._cases.load(case)[0])


class EmbeddingSource:
    """SAM's embeddings of the patches of slices, for an :class:`EmbeddingStore`.

    Args:
        cases: The data, of a 2-D configuration.
        model_type: Key of ``segment_anything.sam_model_registry``.
        channels: Shown to SAM; ``None``: the first three.
        checkpoint: SAM's weights.
        device: Where it runs.
        patches_at_once: Embedded in one batch.

    Raises:
        ValueError: For a configuration that is not 2-D, a channel the images do not have, or weights that cannot be
            read.
        FileNotFoundError: If there is no checkpoint.
    """

    def __init__(
        self,
        cases: PreprocessedCases,
        model_type: str,
        channels: Sequence[int] | None,
        checkpoint: Path,
        device: torch.device,
        patches_at_once: int = AT_ONCE,
    ) -> None:
        self._patch_size = list(cases.configuration.patch_size)
        if len(self._patch_size) != 2:
            raise ValueError(f"embeddings are of slices: {cases.experiment.configuration} is not a 2d configuration")
        colours = Colours.of(cases.configuration.normalization_schemes, channels)
        self._cases = cases
        self._embedder = SamEmbedder(load_sam(model_type, checkpoint), colours, device)
        self._at_once = patches_at_once
        self.description: dict[str, Any] = {
            "kind": "sam_embeddings",
            "checkpoint_sha256": file_digest(checkpoint),
            "model_type": model_type,
            **asdict(colours),
            "window": WINDOW,
            "patch_size": self._patch_size,
            "step": STEP,
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases as they are: their order does not matter."""
        return cases

    def values(self, case: str) -> np.ndarray:
        """Compute the embeddings of a case, ``(patches, channels, height, width)``."""
        images, _ = self._cases.load(case)
        patches = SlicePatches(images.shape[1:], self._patch_size)

        def batches() -> Iterator[np.ndarray]:
            for first in range(0, len(patches), self._at_once):
                numbers = range(first, min(first + self._at_once, len(patches)))
                batch = torch.from_numpy(np.stack([patches.cut(images, number) for number in numbers]))
                yield self._embedder(batch).cpu().numpy().astype(np.float16)

        return np.concatenate(list(batches()))


def _folds(splits: Path, cases: Sequence[str], fold: int | str | None) -> dict[str, int | str]:
    """Case -> fold of the teacher that makes its soft labels."""
    if fold is not None:
        return dict.fromkeys(cases, fold)
    if not splits.is_file():
        raise FileNotFoundError(f"there is no {splits}, which nnU-Net's first training makes: give a fold with -f")
    found: dict[str, int | str] = {
        case: number for number, split in enumerate(read_splits(splits)) for case in split["val"]
    }
    for case in cases:
        if case not in found:
            raise ValueError(f"case {case} is a validation case of no fold in {splits}: give a fold with -f")
    return {case: found[case] for case in cases}


def _number(fold: int | str) -> int:
    """A number to sort folds by."""
    return -1 if fold == "all" else int(fold)


def _with_the_same_data(cases: PreprocessedCases) -> str:
    """End a sentence with what else makes soft labels of these preprocessed cases."""
    plans = PlansManager(cases.experiment.plans)
    for name in plans.available_configurations:
        other = plans.get_configuration(name)
        if other.previous_stage_name is None and other.data_identifier == cases.configuration.data_identifier:
            return f"; those of {name}, whose preprocessed cases are the same, can: give -c {name}"
    return ", SAM's can: give --sam"
