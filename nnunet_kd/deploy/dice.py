"""The mean Dice of an ONNX model on cases with references."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from nnunet_kd.deploy.engines import available_threads, choose_engine
from nnunet_kd.deploy.predictor import OnnxPredictor, find_cases
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.nnunet.images import link_cases


def mean_dice(model: Path, images: Path, labels: Path) -> float:
    """Predict cases with a model and return the mean Dice over all cases and structures.

    Args:
        model: The folder of the model.
        images: The folder of images, named as for prediction.
        labels: The folder of reference segmentations of the same cases.

    Raises:
        ValueError: If a case has no reference.
    """
    predictor = OnnxPredictor(model, choose_engine("auto"), available_threads())
    with tempfile.TemporaryDirectory() as scratch:
        out, references = Path(scratch) / "predicted", Path(scratch) / "references"
        cases = find_cases(images, out, predictor.file_ending, predictor.channels)
        link_cases(references, {case.name: [labels / f"{case.name}{predictor.file_ending}"] for case in cases})
        predictor.predict(cases)
        example = references / f"{cases[0].name}{predictor.file_ending}"
        evaluation = read_evaluation(predictor.dataset_json, predictor.plans, example, 1.0)
        rows = evaluate_folders(references, {"model": out}, evaluation, 1)
    return float(np.nanmean([row.values["dice"] for row in rows]))
