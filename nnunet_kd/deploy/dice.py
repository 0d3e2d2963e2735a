"""The mean Dice of an ONNX model on cases with references."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.nnunet.images import link_cases
from nnunet_kd.runtime.cases import find_cases
from nnunet_kd.runtime.model import Model
from nnunet_kd.runtime.predictor import predict_cases


def mean_dice(folder: Path, images: Path, labels: Path) -> float:
    """Predict cases with a model and return the mean Dice over all cases and structures.

    Args:
        folder: The folder of the model.
        images: The folder of images, named as for prediction.
        labels: The folder of reference segmentations of the same cases.

    Raises:
        ValueError: If a case has no reference.
    """
    model = Model(folder)
    ending = model.pipeline.file_ending
    with tempfile.TemporaryDirectory() as scratch:
        out, references = Path(scratch) / "predicted", Path(scratch) / "references"
        cases = find_cases(images, out, ending, len(model.pipeline.channels))
        link_cases(references, {case.name: [labels / f"{case.name}{ending}"] for case in cases})
        predict_cases(model, cases)
        example = references / f"{cases[0].name}{ending}"
        evaluation = read_evaluation(model.dataset_json, model.plans, example, 1.0)
        rows = evaluate_folders(references, {"model": out}, evaluation, 1)
    return float(np.nanmean([row.values["dice"] for row in rows]))
