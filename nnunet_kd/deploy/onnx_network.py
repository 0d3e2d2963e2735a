"""Export one network to ONNX, compare it with PyTorch, and reduce its weights to half precision."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.runtime.engines import open_engine
from nnunet_kd.storage.writing import is_full

OPSET = 18

# The largest tolerated difference from PyTorch's logits, relative to their largest absolute value.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": float("inf")}


def export_network(
    network: nn.Module, channels: int, patch: Sequence[int], multiples: list[int] | None, file: Path
) -> list[int] | None:
    """Write one network in single precision, with dynamic spatial axes if it can be exported that way.

    Args:
        network: The network in evaluation mode.
        channels: The number of image channels.
        patch: The patch size in voxels, one number per axis.
        multiples: The voxels that each dynamic axis must be a multiple of; ``None`` to fix the axes to the patch size.
        file: The file to write.

    Returns:
        The multiples of the dynamic axes, or ``None`` if the axes are fixed.
    """
    if multiples is not None and not getattr(network, "resizes", False):
        try:
            _write_program(network, channels, patch, multiples, file)
            check_network(network, file, channels, patch, multiples, "fp32")  # exporters can succeed and be wrong
            return multiples
        except Exception as error:  # exporters fail on dynamic axes in many ways
            if is_full(error, file.parent):
                raise
            logging.getLogger(__name__).info("spatial axes are fixed: %s", error)
    _write_program(network, channels, patch, None, file)
    return None


def _write_program(
    network: nn.Module, channels: int, patch: Sequence[int], multiples: Sequence[int] | None, file: Path
) -> None:
    from torch.export import Dim

    axes: dict[int, Any] = {0: Dim("batch", min=1)}
    for axis, multiple in enumerate(multiples or ()):
        free = Dim(f"n{axis}", min=1)
        axes[2 + axis] = multiple * free if multiple > 1 else free
    example = torch.zeros(2, channels, *patch)  # the exporter would specialise a batch size of one
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=False)


@torch.inference_mode()
def check_network(
    network: nn.Module, file: Path, channels: int, patch: Sequence[int], multiples: Sequence[int] | None, precision: str
) -> float:
    """Compare an ONNX file with its network on several batch and image sizes.

    Args:
        network: The network in evaluation mode.
        file: The ONNX file.
        channels: The number of image channels.
        patch: The patch size in voxels, one number per axis.
        multiples: The value that :func:`export_network` returned.
        precision: The precision of the file, which determines the tolerance.

    Returns:
        The largest absolute difference from PyTorch's logits, relative to their largest value.

    Raises:
        ValueError: If logits are not finite or differ by more than the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, *patch), (3, *patch)]
    if multiples is not None:
        shapes.append((1, *(size + 2 * multiple for size, multiple in zip(patch, multiples, strict=True))))
    engine = open_engine("onnxruntime", file, None, threads=torch.get_num_threads())
    worst = 0.0
    for batch, *size in shapes:
        image = torch.randn(batch, channels, *size, generator=generator)
        expected: Tensor = network(image)
        found = torch.from_numpy(engine(image.numpy()))
        if not found.isfinite().all():
            raise ValueError(f"{file.name} gives logits that are not finite")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE[precision]:
        raise ValueError(
            f"{file.name} gives other logits than PyTorch: {worst:.2g} of the largest, {TOLERANCE[precision]:g} allowed"
        )
    return worst


def to_half(file: Path) -> None:
    """Rewrite a network with weights and layers in half precision; image and logits stay in single precision."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(file)), keep_io_types=True), str(file))
