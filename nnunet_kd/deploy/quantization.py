"""Networks in eight bits: static quantisation by ONNX Runtime's own tool, calibrated on patches of real images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnunet_kd.runtime.cases import find_cases, prepare_case
from nnunet_kd.runtime.plans import Pipeline
from nnunet_kd.runtime.sliding_window import SlidingWindow

CASES = 20
_LAYERS = ("Conv", "ConvTranspose")


def calibration_patches(images: Path, pipeline: Pipeline, patch_size: Sequence[int]) -> list[np.ndarray]:
    """Return one preprocessed patch of each of up to :data:`CASES` cases, spread evenly over a folder.

    Every patch is one that the sliding window visits in a prediction, drawn with a fixed seed.

    Args:
        images: The folder of images, named as for prediction.
        pipeline: The settings of the model.
        patch_size: The patch size in voxels, one number per axis.

    Returns:
        The patches, each float32 ``(1, channels, *patch)``.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If an image cannot be read; the message names it.
    """
    cases = find_cases(images, images, pipeline.file_ending, len(pipeline.channels))
    window = SlidingWindow(patch_size, pipeline.labels.heads, 0.5)
    generator = np.random.default_rng(0)
    patches = []
    for place in np.unique(np.linspace(0, len(cases) - 1, CASES).astype(int)):
        image, _ = prepare_case(cases[place], pipeline)
        windows = window.windows(image.shape[1:])
        patch = window.patch(image, windows[int(generator.integers(len(windows)))])
        patches.append(np.ascontiguousarray(patch[None]))
    return patches


def quantize(file: Path, patches: Sequence[np.ndarray]) -> None:
    """Rewrite a network with weights and inputs of its convolutions in eight bits (QDQ form).

    Weights have one scale per output channel and inputs one scale per layer, from the range that they have on the
    patches. The first and the last layer stay in single precision: the intensities of images and the logits need it,
    and both are cheap. Outputs of convolutions stay too, because the instance normalisation behind them enlarges
    channels of small range, and with them the errors of a scale that all channels share.

    Args:
        file: The ONNX file in single precision.
        patches: The patches, each float32 ``(1, channels, *patch)``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Patches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(patches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            patch = next(self._left, None)
            return None if patch is None else {"image": patch}

    network = onnx.load(str(file))
    layers = [node.name for node in network.graph.node if node.op_type in _LAYERS]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the tool logs advice about a preparation that convolutions do not need
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                network,
                str(file),
                Patches(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_LAYERS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[layers[0], layers[-1]] if layers else [],
                extra_options={"OpTypesToExcludeOutputQuantization": list(_LAYERS)},
            )
    finally:
        root.setLevel(level)
