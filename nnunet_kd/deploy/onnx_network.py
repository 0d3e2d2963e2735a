"""One network as ONNX: exported, compared with PyTorch, its weights reduced to half precision or eight bits."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.deploy.engines import open_engine
from nnunet_kd.storage.writing import is_full

OPSET = 18

# Largest absolute difference from PyTorch's logits, relative to their largest value, above which nothing is written.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": float("inf")}


def export_network(
    network: nn.Module, channels: int, patch: Sequence[int], multiples: list[int] | None, file: Path
) -> list[int] | None:
    """Write one network in single precision, with free spatial axes where it can be exported so.

    Args:
        network: In evaluation mode.
        channels: Of its images.
        patch: Voxels of its patch, one number per axis.
        multiples: What the free axes would have to be multiples of, in voxels; ``None``: they are the patch's.
        file: Where it is written.

    Returns:
        The multiples of its spatial axes; ``None`` where they are the patch's alone.
    """
    if multiples is not None and not getattr(network, "resizes", False):
        try:
            _write_program(network, channels, patch, multiples, file)
            check_network(network, file, channels, patch, multiples, "fp32")  # the exporter's word is not enough
            return multiples
        except Exception as error:  # whatever keeps a network from having free axes
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
    example = torch.zeros(2, channels, *patch)  # a batch of one would be taken for a constant
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
    """Compare a file with the network it was made from, on batches and sizes of all kinds.

    Args:
        network: In evaluation mode.
        file: The network in ONNX.
        channels: Of its images.
        patch: Voxels of its patch, one number per axis.
        multiples: As :func:`export_network` returns them.
        precision: Of the file, for the tolerance.

    Returns:
        The largest absolute difference from PyTorch's logits, relative to their largest value.

    Raises:
        ValueError: For logits that are not finite, or that differ by more than the tolerance.
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


def _to_half(file: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(file)), keep_io_types=True), str(file))


def _to_int8(file: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with contextlib.redirect_stdout(io.StringIO()):
        quantize_dynamic(onnx.load(str(file)), file, weight_type=QuantType.QUInt8)


REDUCE: dict[str, Callable[[Path], None]] = {"fp16": _to_half, "int8": _to_int8}  # precision -> rewrites a file
