"""Exported models whose labels are known: one convolution whose logits say between which values an intensity lies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nnunet_kd.runtime.folder import ModelDescription, write_description
from tests.runtime.made_plans import make_dataset_json, make_plans


def make_model(
    folder: Path,
    limits: Sequence[float],
    spacing: Sequence[float],
    labels: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a model without normalisation, whose label counts the limits that an intensity is above; return its folder.

    Args:
        folder: The folder to write.
        limits: The limits, in rising order; with regions, the limit of each region.
        spacing: The voxel size of the model along z, y, x in mm.
        labels: The labels or regions of ``dataset.json``; by default one label per limit.
        **changes: Entries of ``dataset.json`` (``regions_class_order``) and of the plans (``reader``, ``transpose``).
    """
    folder.mkdir()
    of_data = {key: changes.pop(key) for key in ("regions_class_order", "channels") if key in changes}
    channels = of_data.pop("channels", 1)
    labels = labels or {"background": 0, **{f"structure {n}": n for n in range(1, len(limits) + 1)}}
    plans = make_plans(list(spacing), ["NoNormalization"] * channels, **changes)
    described = make_dataset_json(channels, labels, **of_data)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(described))
    if of_data:  # a sigmoid per region
        weights, biases = np.ones(len(limits)), -np.array(limits, float)
    else:  # n * image - (sum of the first n limits) is the largest logit above n limits
        weights = np.arange(len(limits) + 1.0)
        biases = -np.cumsum([0.0, *limits])
    _write_network(folder / "fold_0.onnx", weights, biases, channels, 3)
    description = ModelDescription("made", [16] * 3, [0, 1, 2], ["fold_0.onnx"], 18, "fp32", [1] * 3, 0.0, None, {})
    write_description(folder, description)
    return folder


def _write_network(path: Path, weights: np.ndarray, biases: np.ndarray, channels: int, axes: int) -> None:
    kernel = np.zeros((len(weights), channels, *[1] * axes), np.float32)
    kernel[:, 0] = weights.reshape(-1, *[1] * axes)
    shapes = [[f"{name}{axis}" for axis in range(axes)] for name in ("in", "out")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel", "bias"], ["logits"])],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *shapes[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weights), *shapes[1]])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(biases.astype(np.float32), "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
