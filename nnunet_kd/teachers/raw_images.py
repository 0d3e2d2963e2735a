"""Soft labels of any trained model, which sees the raw images as it saw those of its own training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.nnunet.images import images_by_case, in_order
from nnunet_kd.nnunet.raw_cases import training_images
from nnunet_kd.nnunet.reading import plans_errors
from nnunet_kd.storage.integrity import check_whole, file_digest
from nnunet_kd.teachers.grids import Grid, nearest_axis, resampled
from nnunet_kd.teachers.leakage import known_validation, leakage_of_split, second_hand_leakage
from nnunet_kd.teachers.mapping import ChannelMap, LabelMap
from nnunet_kd.teachers.models import TrainedModel
from nnunet_kd.teachers.teacher import fold_predictor

_LIMIT = float(torch.finfo(torch.float16).max)


class RawImageSource:
    """A source of the soft labels of any nnU-Net model, whose preprocessing, channels and labels can be others.

    The model predicts the raw image of a case with its own preprocessing, sliding window and mirroring; its folds'
    logits are averaged, as by nnU-Net's predictor. The logits are interpolated once on the grid of the preprocessed
    case and mapped to the labels of the case's data set there. Voxels outside the model's crop are background, as in
    nnU-Net's segmentations.

    Args:
        cases: The preprocessed cases.
        raw: The folder of the data set in ``nnUNet_raw``.
        model: The model, whose files are read now and not needed later.
        channels: The channels of the model that the channels of the cases are.
        labels: The structures of the model of which those of the cases consist.
        images: A folder with the images of all channels of the model, ``CASE_0000ENDING`` and so on; ``None`` to read
            the raw images of the cases.
        mirroring: Whether to average the predictions of mirrored copies.
        device: The device on which the model runs.

    Raises:
        ValueError: If the model cannot be loaded, the raw images of a case are missing, or the images of the cases lack
            a channel of the model and no folder has it.
        NotImplementedError: If the model is the second stage of a cascade.
    """

    def __init__(
        self,
        cases: PreprocessedCases,
        raw: Path,
        model: TrainedModel,
        channels: ChannelMap,
        labels: LabelMap,
        images: Path | None,
        mirroring: bool,
        device: torch.device,
    ) -> None:
        theirs, ours = model.experiment, cases.experiment
        self._plans = PlansManager(theirs.plans)
        with plans_errors(Path(model.name) / "plans.json"):
            self._configuration = self._plans.get_configuration(theirs.configuration)
            self._preprocessor = self._configuration.preprocessor_class(verbose=False)
        if self._configuration.previous_stage_name is not None:
            raise NotImplementedError(
                f"{model.name} takes the segmentation of a previous stage as input and cannot make soft labels: choose "
                "a model of another configuration"
            )
        self._cases = cases
        self._dataset_json = theirs.dataset_json
        self._student_plans = PlansManager(ours.plans)
        self._labels = labels
        self._order: Sequence[int] = range(len(channels.names))
        if images is None:
            try:
                self._order = channels.sources()
            except ValueError as error:
                raise ValueError(f"{error}: give a folder of images with all channels of the model with -i") from None
            self._files = training_images(raw, ours.dataset_json, cases.identifiers)
        else:
            self._files = _images_of(images, cases.identifiers, len(channels.names), (ours, theirs))
        self._predict = fold_predictor(model.folds, device, mirroring)
        same = theirs.plans["dataset_name"] == ours.plans["dataset_name"]
        folds = [one.fold for one in model.folds]
        self.description: dict[str, Any] = {
            "kind": "raw_images",
            "model": model.name,
            # the student's folds are the model's only if both were trained on the same data set
            **({"folds": folds} if same else {"folds_of_model": folds}),
            "checkpoint_sha256": {str(one.fold): file_digest(one.checkpoint) for one in model.folds},
            "mirroring": mirroring,
            "channels": list(channels.channels),
            "labels": labels.description,
            "leakage": _leakage(model, cases),
        }

    def ordered(self, cases: Sequence[str]) -> Sequence[str]:
        """Return the cases as they are: their order does not matter."""
        return cases

    def originals(self, case: str) -> Sequence[Path]:
        """Return the raw images of a case."""
        return self._files[case]

    def values(self, case: str) -> np.ndarray:
        """Compute the logits of a case, ``(heads, z, y, x)`` in float16.

        Raises:
            ValueError: If an image cannot be read, or has other channels or another size than expected; the message
                names it.
        """
        shape, placed = self._cases.placement(case)
        student = Grid.of(shape, placed, self._student_plans.transpose_forward, self._cases.configuration.spacing)
        images, properties = self._read(case)
        with contextlib.redirect_stdout(io.StringIO()):
            images, _, properties = self._preprocessor.run_case_npy(
                images, None, properties, self._plans, self._configuration, self._dataset_json
            )
        teacher = Grid.of(images.shape[1:], properties, self._plans.transpose_forward, self._configuration.spacing)
        if teacher.file_shape != student.file_shape:
            raise ValueError(
                f"case {case}: {self._files[case][0]} has {_times(teacher.file_shape)} voxels, but the preprocessed "
                f"case was made from an image of {_times(student.file_shape)}: preprocess again"
            )
        logits = self._predict(images)
        nearest = nearest_axis(
            teacher, student, self._configuration.configuration.get("resampling_fn_probabilities_kwargs", {})
        )
        background = self._labels.background().view(-1, 1)
        made = np.empty((len(background), *shape), np.float16)
        for part, slab, covered in resampled(logits, teacher, student, nearest):
            mapped = self._labels(slab)
            mapped[:, ~covered] = background
            made[:, part] = mapped.clamp(-_LIMIT, _LIMIT).numpy()
        return made

    def _read(self, case: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the images of a case as the model's training read its own, in the order of the model's channels."""
        files = self._files[case]
        reader = self._plans.image_reader_writer_class
        endings = [one.lower() for one in reader.supported_file_endings]
        if not files[0].name.lower().endswith(tuple(endings)):
            reader = self._student_plans.image_reader_writer_class
        images, properties = _read_images(case, files, reader())
        if len(images) != len(self._order):
            raise ValueError(
                f"case {case}: {', '.join(map(str, files))} have {len(images)} channels, but {len(self._order)} are "
                "expected"
            )
        return images[list(self._order)], properties


def _read_images(case: str, files: Sequence[Path], reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the images of a case; if that fails, say which of them cannot be read and why."""
    try:
        for path in files:
            check_whole(path)
        with contextlib.redirect_stdout(io.StringIO()):
            images, properties = reader.read_images([str(path) for path in files])
    except Exception as error:  # each image library has exceptions of its own
        for path in files:
            try:
                check_whole(path)
                with contextlib.redirect_stdout(io.StringIO()):
                    reader.read_images([str(path)])
            except Exception as own:
                raise ValueError(f"case {case}: cannot read {path}: {reason(own, path)}") from own
        raise ValueError(
            f"case {case}: {', '.join(map(str, files))} do not have the same size and voxel size"
        ) from error
    return images, properties


def _images_of(folder: Path, cases: Sequence[str], channels: int, experiments: Sequence[Any]) -> dict[str, list[Path]]:
    """Return the image files of cases in a folder, under the file ending of the student's or the model's data set."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of images {folder}")
    endings = [one.dataset_json["file_ending"] for one in experiments]
    found = {ending: images_by_case(folder, ending) for ending in endings}
    ending = next((one for one in endings if found[one]), endings[0])
    return in_order({case: found[ending].get(case, {}) for case in cases}, channels, folder, ending)


def _leakage(model: TrainedModel, cases: PreprocessedCases) -> list[str]:
    """Return the warnings that the model's own files contain about the cases of the data set."""
    plans = cases.experiment.plans
    notes = [
        second_hand_leakage(model.experiment.plans, plans, one.fold)
        or leakage_of_split(one.kept_back, known_validation(plans["dataset_name"], one.fold), one.fold)
        for one in model.folds
    ]
    return list(dict.fromkeys(note for note in notes if note is not None))


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
