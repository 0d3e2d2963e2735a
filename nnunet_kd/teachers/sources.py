"""The sources of stored soft labels and embeddings, which compute them for each case of a preprocessed data set.

All three sources serve one command through one protocol, so they share a file.
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
    """The interface of a source, which computes soft labels or embeddings of preprocessed cases."""

    @property
    def description(self) -> dict[str, Any]:
        """The description, for the manifest, of everything that the values depend on."""

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases in the order in which they are computed fastest."""

    def originals(self, case: str) -> Sequence[Path]:
        """Return the raw images of a case that the source reads; none if it reads the preprocessed case."""

    def values(self, case: str) -> np.ndarray:
        """Compute the stored values of a case: logits ``(heads, z, y, x)``, or embeddings of its patches."""


class SamSource:
    """A source of SAM's soft labels, with prompts from the training labels.

    With SAM's mask logit s_k of structure k, the logits of classes are [0, s_1 .. s_K], whose softmax equals SAM's
    sigmoid if there are two classes. The logits of regions are [s_1 .. s_K].

    Args:
        cases: The preprocessed cases.
        settings: The settings of the prompts.
        checkpoint: The file that holds SAM's weights.
        device: The device on which SAM runs.

    Raises:
        ValueError: If the images do not have one of the channels, or the weights cannot be read.
        FileNotFoundError: If the checkpoint does not exist.
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
            **settings.described(),
            "window": WINDOW,
            "absent": ABSENT,
            "axis": self._axis,
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases as they are: their order does not matter."""
        return cases

    def originals(self, case: str) -> Sequence[Path]:
        """Return nothing: the preprocessed case is read."""
        return ()

    def values(self, case: str) -> np.ndarray:
        """Compute the logits of a case, ``(heads, z, y, x)``."""
        images, segmentation = self._cases.load(case)
        labels = self._cases.labels
        wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        structures = np.stack([np.isin(segmentation, region) for region in wanted])
        logits = self._teacher.logits(images, structures, segmentation >= 0, self._axis)
        return logits if labels.has_regions else np.concatenate([np.zeros_like(logits[:1]), logits])


class NnUNetSource:
    """A source of the soft labels of the plans' nnU-Net teacher, predicted by nnU-Net's sliding window.

    Args:
        cases: The preprocessed cases.
        fold: The fold of the teacher that predicts all cases, which can be ``"all"``; with ``None``, each case is
            predicted by the fold that was not trained on it.
        mirroring: Whether to average the predictions of mirrored copies.
        device: The device on which the teacher runs.

    Raises:
        FileNotFoundError: If a teacher is missing; the message names the command that trains it.
        ValueError: If a teacher does not match the student or cannot be loaded, or if no fold validates one of the
            cases.
        NotImplementedError: If there are several teachers, or the configuration is a cascade's second stage.
    """

    def __init__(self, cases: PreprocessedCases, fold: int | str | None, mirroring: bool, device: torch.device) -> None:
        settings = read_settings(cases.experiment.plans).teachers
        if len(settings) > 1:
            raise NotImplementedError("the plans name several teachers, but soft labels can only come from one")
        if cases.configuration.previous_stage_name is not None:
            raise NotImplementedError(
                f"{cases.experiment.configuration} takes the segmentation of the previous stage as input, and an "
                f"nnU-Net's soft labels of a cascade's second stage cannot be stored{_alternative(cases)}"
            )
        self._cases = cases
        self._mirroring = mirroring
        self._device = device
        self._fold_of = _folds(cases.folder / "splits_final.json", cases.identifiers, fold)
        folds = sorted(set(self._fold_of.values()), key=_number)
        teacher = replace(settings[0], folds="same")
        self._teachers = {one: find_teachers([teacher], cases.experiment, one)[0] for one in folds}
        for files in self._teachers.values():  # to report errors before the store is created
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

    def originals(self, case: str) -> Sequence[Path]:
        """Return nothing: the preprocessed case is read."""
        return ()

    def values(self, case: str) -> np.ndarray:
        """Compute the logits of a case, ``(heads, z, y, x)``."""
        fold = self._fold_of[case]
        if fold not in self._loaded:
            self._loaded.clear()
            self._loaded[fold] = case_predictor(self._teachers[fold], self._device, self._mirroring)
        return self._loaded[fold](self._cases.load(case)[0])


class EmbeddingSource:
    """A source of SAM's embeddings of the patches of slices, for an :class:`EmbeddingStore`.

    Args:
        cases: The preprocessed cases of a 2-D configuration.
        model_type: The key in ``segment_anything.sam_model_registry``.
        channels: The channels that SAM sees; ``None`` for the first three.
        checkpoint: The file that holds SAM's weights.
        device: The device on which SAM runs.
        normalisation: As for :class:`nnunet_kd.teachers.sam.SamSettings`.
        patches_at_once: The number of patches that are embedded in one batch.

    Raises:
        ValueError: If the configuration is not 2-D, the images do not have one of the channels, or the weights cannot
            be read.
        FileNotFoundError: If the checkpoint does not exist.
    """

    def __init__(
        self,
        cases: PreprocessedCases,
        model_type: str,
        channels: Sequence[int] | None,
        checkpoint: Path,
        device: torch.device,
        normalisation: str = "sam",
        patches_at_once: int = AT_ONCE,
    ) -> None:
        self._patch_size = list(cases.configuration.patch_size)
        if len(self._patch_size) != 2:
            raise ValueError(
                f"embeddings can only be computed for 2d configurations, which {cases.experiment.configuration} is not"
            )
        colours = Colours.of(cases.configuration.normalization_schemes, channels)
        self._cases = cases
        self._embedder = SamEmbedder(load_sam(model_type, checkpoint), colours, device, normalisation)
        self._at_once = patches_at_once
        self.description: dict[str, Any] = {
            "kind": "sam_embeddings",
            "checkpoint_sha256": file_digest(checkpoint),
            "model_type": model_type,
            **asdict(colours),
            "window": WINDOW,
            "patch_size": self._patch_size,
            "step": STEP,
            **({} if normalisation == "sam" else {"normalisation": normalisation}),
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases as they are: their order does not matter."""
        return cases

    def originals(self, case: str) -> Sequence[Path]:
        """Return nothing: the preprocessed case is read."""
        return ()

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
    """Return the fold of the teacher that predicts each case."""
    if fold is not None:
        return dict.fromkeys(cases, fold)
    if not splits.is_file():
        raise FileNotFoundError(f"there is no {splits}, which nnU-Net's first training creates: give a fold with -f")
    found: dict[str, int | str] = {
        case: number for number, split in enumerate(read_splits(splits)) for case in split["val"]
    }
    for case in cases:
        if case not in found:
            raise ValueError(f"no fold in {splits} has case {case} as a validation case: give a fold with -f")
    return {case: found[case] for case in cases}


def _number(fold: int | str) -> int:
    """Return a number by which folds can be sorted."""
    return -1 if fold == "all" else int(fold)


def _alternative(cases: PreprocessedCases) -> str:
    """Return the end of a sentence that offers another source of soft labels for these preprocessed cases."""
    plans = PlansManager(cases.experiment.plans)
    for name in plans.available_configurations:
        other = plans.get_configuration(name)
        if other.previous_stage_name is None and other.data_identifier == cases.configuration.data_identifier:
            return f"; those of {name}, whose preprocessed cases are the same, can: give -c {name}"
    return ", SAM's can: give --sam"
